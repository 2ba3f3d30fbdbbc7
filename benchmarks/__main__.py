"""Time a config's network on this machine: compilation, a training step and its parts, inference.

    python -m benchmarks [--config configs/coco.py:nanodet-plus-m_320] [--only REGEX] [--batch 8]
    python -m benchmarks assignment [...]    # of NanoDet-Plus alone: `benchmarks/assignment.py`

Wall and CPU time are medians over `--runs`; peak memory is of the whole process so far. Run it
twice: the first run compiles, the second loads from the cache, and runs up to a third faster.
"""

import argparse
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import assignment
from nanodet_jax import backend, config, doors
from nanodet_jax.errors import UserError
from nanodet_jax.inference import make_detect
from nanodet_jax.models.detector import build_model, priors_of
from nanodet_jax.objective import objective
from nanodet_jax.state import create_state, init_variables
from nanodet_jax.structures import Batch, GroundTruth
from nanodet_jax.training.optimizer import make_optimizer
from nanodet_jax.training.parallel import make_train_step

BOXES = 30  # ground-truth slots, half of them filled on average


def random_batch(batch: int, size: int) -> Batch:
    """Noise and random boxes: what is in an image does not matter to the time."""
    random = np.random.RandomState(0)
    corner = random.uniform(0, 0.8 * size, (batch, BOXES, 2))
    extent = random.uniform(0.03 * size, 0.5 * size, (batch, BOXES, 2))
    truth = GroundTruth(
        boxes=np.concatenate([corner, corner + extent], -1).clip(0, size).astype(np.float32),
        labels=random.randint(0, 80, (batch, BOXES)).astype(np.int32),
        valid=np.arange(BOXES) < random.randint(0, BOXES, (batch, 1)),
        ignore=np.zeros((batch, BOXES), bool),
    )
    images = random.randn(batch, size, size, 3).astype(np.float32)
    return jax.tree.map(jnp.asarray, Batch(images, truth))


def cases(
    measured: config.Config, batch: int, size: int
) -> Iterator[tuple[str, Callable[[], Callable[[], Any]]]]:
    """Names, and functions that build a function to be timed."""
    model_config = replace(measured.model, num_classes=80)
    model = build_model(model_config)
    priors = priors_of(model_config, (size, size))
    parts = {
        "assigner": measured.assigner, "compat": measured.compat, "weights": measured.loss,
    }  # fmt: skip
    variables = init_variables(model, 0)

    def training_step():
        decay = measured.training.ema_decay
        schedule = optax.constant_schedule(1e-4)
        optimizer = make_optimizer(measured.training, schedule)
        step = make_train_step(
            optimizer, schedule, model=model, priors=priors, ema_decay=decay, **parts
        )
        data, held = random_batch(batch, size), [create_state(variables, optimizer, decay > 0)]

        def run():
            held[0], metrics = step(held[0], data)
            return metrics

        return run

    def forward():
        data = random_batch(batch, size)
        # The guidance runs along.
        apply = backend.jit(
            lambda v, x: model.apply(v, x, method="branches", mutable=["batch_stats"])
        )
        return lambda: apply(variables, data.images)

    def loss_gradient():
        data = random_batch(batch, size)
        branches = backend.jit(partial(model.apply, method="branches", train=False))
        predictions = branches(variables, data.images)
        gradient = backend.jit(
            jax.grad(lambda p: objective(p, data.ground_truth, priors, **parts)[0])
        )
        return lambda: gradient(predictions)

    def network(count):
        images = random_batch(count, size).images
        apply = backend.jit(model.apply)
        return lambda: apply(variables, images)

    def detection(count):
        images = random_batch(count, size).images
        detect = make_detect(model)
        warps = jnp.broadcast_to(jnp.eye(3), (count, 3, 3))
        sizes = jnp.full((count, 2), float(size))
        return lambda: detect(variables, images, warps, sizes)

    yield f"training step, batch {batch}", training_step
    yield f"training forward, batch {batch}", forward
    yield f"assignment + loss + gradient, batch {batch}", loss_gradient
    yield "network, batch 1", lambda: network(1)
    yield f"network, batch {batch}", lambda: network(batch)
    yield "network + suppression, batch 1", lambda: detection(1)


def measure(build: Callable[[], Callable[[], Any]], runs: int) -> dict[str, float]:
    """Seconds to the first result, then medians per run."""
    run = build()
    started = time.perf_counter()
    jax.block_until_ready(run())
    first = time.perf_counter() - started
    walls, cpus = [], []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "first_s": first,
        "wall_ms": 1e3 * float(np.median(walls)),
        "wall_min_ms": 1e3 * min(walls),
        "cpu_ms": 1e3 * float(np.median(cpus)),
        "peak_mb": peak if sys.platform != "darwin" else peak / 1024,
    }


def measure_parts(
    measured: config.Config, batch: int, runs: int, only: str
) -> dict[str, dict[str, float]]:
    """Measure and print the cases whose names have `only` in them."""
    size = measured.input_size[0]
    device = jax.devices()[0].device_kind
    print(f"{measured.name}, {size} x {size}, {device}, jax {jax.__version__}")
    print(f"{'':46s} {'first s':>8s} {'wall ms':>8s} {'min':>8s} {'cpu ms':>8s} {'peak MB':>8s}")
    rows = {}
    for name, build in cases(measured, batch, size):
        if re.search(only, name):
            rows[name] = row = measure(build, runs)
            print(f"{name:46s} {row['first_s']:8.2f}", *(f"{x:8.1f}" for x in [*row.values()][1:]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", nargs="?", choices=("parts", "assignment"), default="parts")
    parser.add_argument("--config", default="configs/coco.py:nanodet-m_320", help="of the parts")
    parser.add_argument("--only", default="", help="regular expression searched in the names")
    parser.add_argument("--batch", type=int, help="default: 8, of assignment 32")
    parser.add_argument("--size", type=int, help="default: the config's, of assignment 320")
    parser.add_argument("--runs", type=int, help="default: 15, of assignment 5")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    backend.prepare()
    if args.what == "assignment":
        rows = assignment.benchmark(args.batch or 32, args.size or 320, args.runs or 5, args.only)
    else:
        try:
            measured = doors.load_config(args.config)
            if args.size:
                measured.input_size = (args.size, args.size)
                config.check(measured)
        except UserError as error:
            doors.fail(error)
        rows = measure_parts(measured, args.batch or 8, args.runs or 15, args.only)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
