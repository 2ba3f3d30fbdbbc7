"""Assignment and loss of NanoDet-Plus, with this project's cost and with arrays of [P, G, C].

Dimensions: B batch, P priors, G ground-truth slots, C classes.

Three forms of the same cost run in turn, so that a busy machine slows all of them equally:

- ours: `dynamic_soft_label.assignment_cost`, without an array of shape [P, G, C];
- direct, fused by XLA: with such an array, which XLA need not store;
- direct, materialized: stores the array, as the original does.

The materialized form takes 14 GB with batch 32 and 300 slots. On two CPU cores, it also takes most
of the benchmark's time.
"""

import math
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Repeats, alternate, planned_mb, summarize, timed
from nanodet_jax import boxes, config
from nanodet_jax.losses import functional
from nanodet_jax.losses.assigners import dynamic_soft_label
from nanodet_jax.losses.criterion import Criterion, build_assigner
from nanodet_jax.runtime import backend
from nanodet_jax.structures import GroundTruth, Predictions

SLOTS = (20, 100, 300)
CLASSES, REG_MAX, STRIDES, OFFSET = 80, 7, (8, 16, 32, 64), 0.0  # NanoDet-Plus on COCO
ASSIGNER = config.Assigner(name="dynamic_soft_label", topk=13)
COLUMNS = {  # keys of a row: title, decimals
    "wall_ms": ("wall ms", 1),
    "wall_min_ms": ("min", 1),
    "cpu_ms": ("cpu ms", 1),
    "of_ours": ("of ours", 2),
    "growth": ("growth", 2),
    "temp_mb": ("temp MB", 1),
    "total_mb": ("total MB", 1),
    "peak_mb": ("peak MB", 1),
}


def direct_cost(
    class_logits: jax.Array,
    overlaps: jax.Array,
    labels: jax.Array,
    iou_factor: float,
    materialized: bool = False,
) -> jax.Array:
    """Compute `dynamic_soft_label.assignment_cost` as a sum over all classes for every pair.

    Args:
      class_logits: [P, C].
      overlaps: [G, P].
      labels: [G].
      iou_factor: weight of the iou cost.
      materialized: repeat the logits for each box first, and store the losses before summing them.
        XLA for CPUs drops the barrier but stores what it computes from the repeated logits, because
        it does not compute exponentials twice. It stores one or two arrays of [P, G, C]. Without a
        compiler, up to five are stored at a time.

    Returns:
      [G, P].
    """
    one_hot = jax.nn.one_hot(labels, class_logits.shape[1])
    soft_labels = one_hot[None] * overlaps.T[:, :, None]  # [P, G, C]
    logits = class_logits[:, None]
    if materialized:
        logits = jnp.broadcast_to(logits, soft_labels.shape)
    of_class = functional.quality_focal(logits, soft_labels)
    if materialized:
        of_class = jax.lax.optimization_barrier(of_class)
    distance = -jnp.log(overlaps + dynamic_soft_label.LOG_FLOOR)
    return jnp.sum(of_class, axis=-1).T + iou_factor * distance


FORMS: dict[str, Callable] = {
    "ours": dynamic_soft_label.assignment_cost,
    "direct, fused by XLA": direct_cost,
    "direct, materialized": partial(direct_cost, materialized=True),
}


def with_cost(function: Callable, cost: Callable) -> Callable:
    """Return a new function that uses this cost in the assigner; `jit` traces it separately."""

    def patched(*args):
        with mock.patch.object(dynamic_soft_label, "assignment_cost", cost):
            return function(*args)

    return patched


def functions(priors: boxes.Priors) -> dict[str, Callable]:
    """Return the functions to measure, by name. They take predictions and ground truth."""
    criterion = Criterion(priors, build_assigner(ASSIGNER, config.Compat()), config.Loss())
    return {
        "assignment": jax.vmap(criterion.assign),
        "assignment + loss + gradient": jax.value_and_grad(criterion, has_aux=True),
    }


def random_predictions(batch: int, priors: int, classes: int) -> tuple[Predictions, ...]:
    """Draw predictions of two branches; class logits are about as low as after training."""
    random = np.random.default_rng(0)

    def branch():
        class_logits = random.normal(-4, 1.5, (batch, priors, classes)).astype(np.float32)
        box_logits = random.normal(0, 1.5, (batch, priors, 4, REG_MAX + 1)).astype(np.float32)
        return Predictions(jnp.asarray(class_logits), jnp.asarray(box_logits))

    return branch(), branch()


def random_truth(batch: int, slots: int, classes: int, size: int) -> GroundTruth:
    """Draw ground truth: in every slot, a box with sides of 3 to 50 percent of the input's side."""
    random = np.random.default_rng(1)
    corner = random.uniform(0, 0.8 * size, (batch, slots, 2))
    extent = random.uniform(0.03 * size, 0.5 * size, (batch, slots, 2))
    truth = GroundTruth(
        boxes=np.concatenate([corner, corner + extent], -1).clip(0, size).astype(np.float32),
        labels=random.integers(0, classes, (batch, slots)).astype(np.int32),
        valid=np.ones((batch, slots), bool),
        ignore=np.zeros((batch, slots), bool),
    )
    return jax.tree.map(jnp.asarray, truth)


def free_bytes() -> float:
    """Return the free memory of the device, or infinity if unknown."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not Linux
        return math.inf


class Program(NamedTuple):
    """A compiled program with its arguments."""

    run: Callable[[], Any] | None  # None: needs more memory than is free
    memory: dict[str, float]  # MB


def build(function: Callable, *args: Any) -> Program:
    """Compile a function, and run it once if there is enough memory.

    `temp_mb` is the memory that the compiler plans for temporaries; `total_mb` also includes
    arguments and results. `peak_mb` is the peak memory of the device so far, if the device reports
    it. Therefore, build programs in increasing order of memory.
    """
    jitted: Any = backend.jit(function)
    compiled = jitted.lower(*args).compile()
    plan = compiled.memory_analysis()
    memory = {"temp_mb": plan.temp_size_in_bytes / 1e6, "total_mb": planned_mb(compiled)}
    if plan.temp_size_in_bytes + plan.output_size_in_bytes > free_bytes():
        return Program(None, memory)
    jax.block_until_ready(compiled(*args))
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        memory["peak_mb"] = stats["peak_bytes_in_use"] / 1e6
    return Program(lambda: compiled(*args), memory)


def benchmark(batch: int, size: int, runs: int, only: str = "") -> dict[str, dict[str, float]]:
    """Measure and print milliseconds and megabytes; return rows by name.

    Args:
      batch: B.
      size: side of the input, pixels.
      runs: number of runs to take the median of.
      only: measure only rows whose names contain a match of this regular expression.
    """
    priors = boxes.make_priors((size, size), STRIDES, OFFSET)
    branches = random_predictions(batch, len(priors.strides), CLASSES)
    truths = {slots: random_truth(batch, slots, CLASSES, size) for slots in SLOTS}
    programs: dict[tuple[int, str], dict[str, Program]] = {}
    for form, cost in FORMS.items():  # the outermost loop, because memory increases: see `build`
        for slots, truth in truths.items():
            for part, function in functions(priors).items():
                if re.search(only, f"{part}, {form}, G {slots}"):
                    program = build(with_cost(function, cost), branches, truth)
                    programs.setdefault((slots, part), {})[form] = program

    print(
        f"nanodet-plus, batch {batch}, {len(priors.strides)} priors, {CLASSES} classes, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    print("of ours: min divided by the min of our form (other work affects the minimum least);")
    print("growth: min divided by the min with the fewest slots; temp: memory planned for")
    print("temporaries; total: with arguments and results; peak: peak memory of the device so far.")
    rows: dict[str, dict[str, float]] = {}
    first: dict[tuple[str, str], float] = {}
    for (slots, part), forms in sorted(programs.items(), key=lambda item: item[0]):
        stored = 4e-6 * batch * len(priors.strides) * slots * CLASSES
        print(f"\nG {slots}, {part}; one array of [B, P, G, C] is {stored:.0f} MB")
        print(f"{'':22s}", *(f"{title:>9s}" for title, _ in COLUMNS.values()))
        runs_by_form = {form: timed(program.run) for form, program in forms.items() if program.run}
        times = {
            form: summarize(each)
            for form, each in alternate(runs_by_form, Repeats(min_runs=runs, max_runs=runs)).items()
        }
        for form, program in forms.items():
            row = rows[f"{part}, {form}, G {slots}"] = times.get(form, {}) | program.memory
            if form not in times:
                print(f"{form:22s} skipped: needs about {row['total_mb'] / 1e3:.1f} GB")
                continue
            best = row["wall_min_ms"]
            row["growth"] = best / first.setdefault((part, form), best)
            if "ours" in times:
                row["of_ours"] = best / times["ours"]["wall_min_ms"]
            numbers = (
                f"{row[key]:9.{digits}f}" if key in row else f"{'-':>9s}"
                for key, (_, digits) in COLUMNS.items()
            )
            print(f"{form:22s}", *numbers)
    return rows
