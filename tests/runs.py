"""Training runs in separate processes, and the content of their workdirs, for comparison."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax

from nanodet_jax import config as configs
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import TrainState, abstract_variables, create_state
from nanodet_jax.training.optimizer import make_optimizer

TIMINGS = ("waiting", "images_per_second")  # fields of a log line that depend on the clock

REPO = Path(__file__).resolve().parents[1]
LIMIT = 600  # seconds for a run
TINY = (
    "--config=configs/shapes.py",
    "--config.input_size=64,64",
    "--config.model.channels=32",
    "--config.model.stacked_convs=1",
    "--config.data.val_size=6",
    "--config.training.warmup_steps=2",
    "--config.training.log_every=1",
    "--config.training.ema_decay=0.9",
)  # a network too small to learn; a step takes about 20 ms


class Launch:
    """Process that runs `train.py` on a CPU, with its output in `WORKDIR.log`."""

    def __init__(self, workdir: Path, flags: Sequence[str]):
        self.workdir, self.started = workdir, time.monotonic()
        self._log = (workdir.parent / f"{workdir.name}.log").open("ab")
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # one device
        self.process = subprocess.Popen(
            [sys.executable, "train.py", *flags, f"--workdir={workdir}"],
            cwd=REPO, env=environment,
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait_for(self, happened: Callable[[], bool], poll: float = 0.001) -> bool:
        """Wait until `happened()` or the end of the process. Return whether it happened."""
        while self.process.poll() is None:
            if happened():
                return True
            if time.monotonic() > self.started + LIMIT:
                raise TimeoutError(f"{self._log.name}: no end after {LIMIT} seconds")
            time.sleep(poll)
        return False

    def end(self, number: int | None = None) -> tuple[int, float]:
        """Send a signal if given, and wait. Return the exit status and the seconds waited."""
        sent = time.monotonic()
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(LIMIT)
        self._log.close()
        return status, time.monotonic() - sent


def journal(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, without timings."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            waiting, speed = (line.pop(name) for name in TIMINGS)
            assert 0 < waiting < 1 and speed > 0
    return lines


def abstract_state(workdir: Path) -> TrainState:
    """Return the shapes of a run's state, including its average and guidance if present."""
    resolved = configs.from_json((workdir / "config.json").read_text())
    optimizer = make_optimizer(resolved.training, lambda step: 0.0)
    variables = abstract_variables(build_model(resolved.model), guided=True)
    averaged = resolved.training.ema_decay > 0
    return jax.eval_shape(partial(create_state, optimizer=optimizer, ema=averaged), variables)


def final_state(workdir: Path, step: int) -> TrainState:
    """Return the state that a run saved at a step."""
    with closing(Checkpoints(workdir, writing=False)) as checkpoints:
        return checkpoints.restore(step, abstract_state(workdir))
