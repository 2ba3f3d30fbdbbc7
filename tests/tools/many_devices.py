"""Compare one training step on 1, 2, 4 and 8 devices with the same batch.

    python tests/tools/many_devices.py [--config FILE:VARIANT] [--weights FILE] [--dtype float64]
        [--devices 2 4 8] [--processes 2 4]

The batch has eight images with 0 to 5 boxes each. With eight devices, each device gets one image.
Batch norm uses all images. For each number of devices, rows show the largest difference from the
results on one device, relative to the largest magnitude of each array. They cover the loss and its
parts, the gradients, and the arrays of the new state.

Some gradients are 0 up to rounding, such as the gradient of a bias before a batch norm. So the
magnitude of an array counts as at least 1e-8 of the largest magnitude of all arrays. The magnitude
of a parameter counts as at least the learning rate, because AdamW moves every parameter that has a
gradient by about this amount.

Rounding depends on the order of summation, and a deep network amplifies it. With --resolution N,
the last N groups of rows show how much the results on one device change if the last bits of the
float32 weights change at random. In float64 all differences should be far below 1e-6.

With --processes the step also runs in each given number of processes. Each process has one device
and a part of the batch. They communicate over the loopback interface.
"""

import argparse
import os
import pickle
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
import optax

from nanodet_jax import config
from nanodet_jax.cli.config_flags import load_config
from nanodet_jax.losses.criterion import build_criterion
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.runtime import backend, distributed
from nanodet_jax.runtime.process import setup_process
from nanodet_jax.state import TrainState, create_state
from nanodet_jax.structures import Batch, GroundTruth
from nanodet_jax.training.initial_weights import initial_variables, read_initial_weights
from nanodet_jax.training.optimizer import make_optimizer
from nanodet_jax.training.parallel import local_copy, make_place_batch, make_train_step, replicate
from tests.runtime.test_distributed import finish, free_port, start
from tests.tools.parity_checks.comparison import jitter

COUNTS = (1, 2, 4, 8)
BATCH, SLOTS = 8, 5
BOXES = (2, 0, 5, 1, 0, 0, 3, 1)  # number of boxes in each image
SMALLEST = 1e-8  # minimum magnitude of an array, as a fraction of the largest of all arrays
LEARNING_RATE = 1e-3


class Task(NamedTuple):
    """Training step for any number of devices, with its initial state and its batch."""

    parts: dict[str, Any]  # arguments of `make_train_step`, except the number of devices
    state: TrainState  # its optimizer state keeps the gradients of the last step
    batch: Batch


def make_task(settings: config.Config, dtype: str = "float32") -> Task:
    """Return the step of a config, with synchronized batch norm, and its initial state and batch.

    dtype float64 needs jax_enable_x64.
    """
    settings.model.num_classes = settings.model.num_classes or 4
    settings.model.sync_batch_norm = True
    model = build_model(settings.model, settings.precision)
    schedule = optax.constant_schedule(LEARNING_RATE)
    kept = optax.trace(decay=0.0)  # stores the gradients unchanged
    optimizer = optax.chain(kept, make_optimizer(settings.training, schedule))
    parts = {
        "optimizer": optimizer,
        "schedule": schedule,
        "model": model,
        "criterion": build_criterion(settings),
        "ema_decay": settings.training.ema_decay,
        "detach_step": 100,
    }
    variables, _ = initial_variables(settings, model, read_initial_weights(settings))
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    make_state = partial(create_state, optimizer=optimizer, ema=settings.training.ema_decay > 0)
    state = jax.device_get(backend.jit_once(make_state)(variables))
    return Task(parts, state, make_batch(settings, dtype))


def make_batch(settings: config.Config, dtype: str) -> Batch:
    """Return images of coarse and fine noise; image k has BOXES[k] boxes of various sizes."""
    random = np.random.default_rng(0)
    height, width = settings.input_size
    coarse = random.normal(size=(BATCH, height // 16, width // 16, 3))
    images = np.kron(coarse, np.ones((1, 16, 16, 1))) + random.normal(
        0, 0.3, (BATCH, height, width, 3)
    )
    size = np.array([width, height])
    corner = random.uniform(0, 0.6, (BATCH, SLOTS, 2))
    other = corner + random.uniform(0.1, 0.4, (BATCH, SLOTS, 2))
    boxes = np.concatenate([corner * size, other * size], axis=-1)
    valid = np.arange(SLOTS) < np.array(BOXES)[:, None]
    labels = random.integers(0, settings.model.num_classes, (BATCH, SLOTS)).astype(np.int32)
    truth = GroundTruth(
        np.where(valid[..., None], boxes, 0).astype(dtype),
        np.where(valid, labels, 0),
        valid,
        np.zeros_like(valid),
    )
    return Batch(images.astype(dtype), truth)


def after_a_step(task: Task, num_devices: int) -> dict[str, Any]:
    """Return `loss`, `gradients`, `parameters` and `other state` as numpy arrays."""
    step = make_train_step(num_devices=num_devices, **task.parts)
    return results_of(*step(task.state, task.batch))


def in_processes(count: int, settings: list[str]) -> dict[str, Any]:
    """Return the same as `after_a_step`, computed by `count` processes with one device each."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results")
        given = [__file__, *settings, f"--coordinator=127.0.0.1:{free_port()}", f"--count={count}"]
        ended = finish(
            [start([*given, f"--part={i}", f"--out={file}"]) for i in range(count)], 1800
        )
        assert all(code == 0 for code, _, _ in ended), ended
        return pickle.loads(file.read_bytes())


def take_part(task: Task, args: argparse.Namespace) -> None:
    """Run the step as one of the processes."""
    size = BATCH // args.count
    own = slice(args.part * size, (args.part + 1) * size)
    batch = make_place_batch()(jax.tree.map(lambda leaf: leaf[own], task.batch))
    step = make_train_step(**task.parts)
    found = results_of(*local_copy(step(replicate(task.state), batch)))
    if distributed.is_writer():
        Path(args.out).write_bytes(pickle.dumps(found))


def results_of(state: TrainState, metrics: dict[str, jax.Array]) -> dict[str, Any]:
    """Return the parts of a step's output that are compared."""
    state, metrics = jax.device_get((state, metrics))
    gradients = state.opt_state[0].trace
    average = state.ema or {"params": None, "batch_stats": None}
    return {
        "loss": metrics,
        "gradients": gradients,
        "parameters": (state.params, average["params"]),
        "other state": (state.step, state.batch_stats, average["batch_stats"], state.opt_state),
    }


def differences(
    ours: Any, theirs: Any, smallest: float = SMALLEST, least: float = 0.0
) -> dict[str, float]:
    """Return the largest difference of each array, relative to its largest magnitude.

    The magnitude counts as at least `least`, and as at least `smallest` times the largest magnitude
    of all arrays.
    """
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    found = {}
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    for (path, one), other in zip(jax.tree.leaves_with_path(theirs), jax.tree.leaves(ours)):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        scale = max(np.abs(one).max(), smallest * largest, least)
        found[jax.tree_util.keystr(path)] = float(np.abs(one - other).max() / scale)
    return found


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the `differences` of each part of `after_a_step`."""
    least = {"parameters": LEARNING_RATE}
    return {
        what: differences(ours[what], theirs[what], least=least.get(what, 0.0)) for what in theirs
    }


def worst(found: dict[str, float]) -> tuple[float, str]:
    """Return the largest difference and the name of its array."""
    return max((difference, name) for name, difference in found.items())


def show(head: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for what, found in compare(ours, theirs).items():
        largest, name = worst(found)
        over = sum(difference > 1e-6 for difference in found.values())
        print(
            f"{head:22s} {what:11s} {largest:8.1e}  {over:3d} of {len(found):3d} over 1e-6  {name}"
        )
        head = ""
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="configs/coco.py:nanodet-m_320")
    parser.add_argument("--weights", default="", help="initial weights; default: random")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--resolution", type=int, default=0)
    parser.add_argument("--input-size", type=int, default=320)
    parser.add_argument("--devices", type=int, nargs="*", default=COUNTS[1:])
    parser.add_argument("--processes", type=int, nargs="*", default=[])
    for name, kind in (("coordinator", str), ("count", int), ("part", int), ("out", str)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # of `in_processes`
    args = parser.parse_args()
    setup_process()
    jax.config.update("jax_enable_x64", args.dtype == "float64")
    if args.coordinator:
        distributed.join(
            config.Distributed(args.coordinator, num_processes=args.count, process_index=args.part)
        )
    settings = load_config(args.config)
    settings.input_size = (args.input_size, args.input_size)
    settings.model.num_classes = 80
    settings.training.init_weights = args.weights
    task = make_task(settings, args.dtype)
    if args.coordinator:
        take_part(task, args)
        return
    print(f"{args.config}, {args.dtype}, {args.input_size} x {args.input_size}", flush=True)
    step = make_train_step(**task.parts)

    def run(state: TrainState) -> dict[str, Any]:
        return results_of(*step(state, task.batch))

    one = run(task.state)
    for count in args.devices:
        show(f"{count} devices", after_a_step(task, count), one)
    for count in args.processes:
        same = ("config", "weights", "dtype", "input_size")
        given = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in same]
        show(f"{count} processes", in_processes(count, given), one)
    for seed in range(args.resolution):
        params = jitter(task.state.params, seed)
        show(f"last bits of weights {seed}", run(task.state.replace(params=params)), one)


if __name__ == "__main__":
    main()
