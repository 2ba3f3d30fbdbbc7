"""Training runs in separate processes, and the state and log that they leave in their workdirs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from nanodet_jax import config as configs
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.models.backbones import shufflenet_v2
from nanodet_jax.models.backbones.backbone import trained_parameters
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import TrainState, abstract_variables, create_state
from nanodet_jax.training.optimizer import make_optimizer

TIMINGS = ("waiting", "images_per_second")  # fields of a log line that depend on the clock

REPO = Path(__file__).resolve().parents[1]
SHALLOW_TRAIN = "tests/shallow_train.py"
LIMIT = 600  # seconds that a run may take
# Environment of a process with one CPU device, which compiles fast.
ONE_DEVICE = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
TINY_DATA = (
    "--config.input_size=64,64",
    "--config.model.channels=32",
    "--config.model.stacked_convs=1",
    "--config.data.train_size=16",
    "--config.data.val_size=6",
    "--config.data.batch_size=4",
)  # shared by the tests of commands, so that they share compiled programs
TINY = (
    "--config=configs/shapes.py",
    "--config.input_size=64,64",
    "--config.model.channels=32",
    "--config.model.stacked_convs=1",
    "--config.data.val_size=6",
    "--config.training.warmup_steps=2",
    "--config.training.log_every=1",
    "--config.training.ema_decay=0.9",
)  # a tiny network; a step takes about 20 ms


@contextmanager
def shallow_backbone() -> Iterator[None]:
    """Build ShuffleNetV2 with one block per stage, for a third of the compilation time."""
    with mock.patch.object(shufflenet_v2, "STAGE_BLOCKS", (1, 1, 1)):
        yield


class Launch:
    """Process of `train.py` on one CPU device; its output is appended to `WORKDIR.log`.

    With `shallow`, the process is `tests/shallow_train.py`, which compiles faster.
    """

    def __init__(self, workdir: Path, flags: Sequence[str], shallow: bool = False) -> None:
        self.workdir, self.started = workdir, time.monotonic()
        self._log = (workdir.parent / f"{workdir.name}.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, SHALLOW_TRAIN if shallow else "train.py", *flags,
             f"--workdir={workdir}"],
            cwd=REPO, env=os.environ | ONE_DEVICE,
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait_for(self, happened: Callable[[], bool], poll: float = 0.001) -> bool:
        """Wait until `happened` returns True; return False if the process ends first."""
        while self.process.poll() is None:
            if happened():
                return True
            if time.monotonic() > self.started + LIMIT:
                raise TimeoutError(f"{self._log.name}: still running after {LIMIT} seconds")
            time.sleep(poll)
        return False

    def end(self, number: int | None = None) -> tuple[int, float]:
        """Send a signal if given; return the exit status and the seconds until the exit."""
        sent = time.monotonic()
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(LIMIT)
        self._log.close()
        return status, time.monotonic() - sent


def journal(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without their timings."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            waiting, speed = (line.pop(name) for name in TIMINGS)
            assert 0 < waiting < 1 and speed > 0
    return lines


def abstract_state(workdir: Path) -> TrainState:
    """Return the shapes of the state of a run, with its ema and its guidance if it has them."""
    resolved = configs.from_json((workdir / "config.json").read_text())
    optimizer = make_optimizer(
        resolved.training, lambda step: 0.0, trained=trained_parameters(resolved.model)
    )
    variables = abstract_variables(build_model(resolved.model), guided=True)
    averaged = resolved.training.ema_decay > 0
    return jax.eval_shape(partial(create_state, optimizer=optimizer, ema=averaged), variables)


def assert_same_end(workdir: Path, expected: Path, step: int) -> None:
    """Check that two runs have the same log, and the same state at `step`, bit for bit."""
    assert journal(workdir) == journal(expected)
    pairs = zip(
        jax.tree.leaves(final_state(workdir, step)),
        jax.tree.leaves(final_state(expected, step)),
        strict=True,
    )
    for actual, reference in pairs:
        np.testing.assert_array_equal(actual, reference)


def final_state(workdir: Path, step: int) -> TrainState:
    """Restore the state that a run saved at a step."""
    with closing(Checkpoints(workdir, writing=False)) as checkpoints:
        return checkpoints.restore(step, abstract_state(workdir))
