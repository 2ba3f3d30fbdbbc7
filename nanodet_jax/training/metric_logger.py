"""What a run says while it goes on: a bar, `metrics.jsonl`, TensorBoard, pictures."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nanodet_jax import terminal, visualize
from nanodet_jax.errors import UserError, reporting_write_errors
from nanodet_jax.files import NO_FOLLOW, atomic_write, make_folder, open_regular
from nanodet_jax.training.tensorboard import EventWriter

LINE_LIMIT = 1 << 24  # bytes of a line; 10,000 classes take a million
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_FOLLOW


class MetricLogger:
    """Writes to a workdir; a resumed run goes on where its checkpoint was, nothing twice.

    Args:
      workdir: of the run.
      start_step, total_steps: steps done already, and in the end.
      rated: whether the evaluation of `start_step`, if it has one, was completed.

    Attributes:
      workdir: holds `metrics.jsonl`, `tensorboard/` and `pictures/`.

    Raises:
      UserError: from all that writes, naming the file or folder that cannot be written.
    """

    def __init__(self, workdir: Path, start_step: int, total_steps: int, rated: bool = True):
        self.workdir = workdir
        self._path, self._folder = workdir / "metrics.jsonl", workdir / "tensorboard"
        self._forget_after(start_step, rated)
        with reporting_write_errors(self._folder):
            self._board = EventWriter(self._folder, start_step + 1)
        try:
            with reporting_write_errors(self._path):
                self._file = os.fdopen(os.open(self._path, APPEND, 0o666), "a", buffering=1)
        except UserError:
            self._board.close()
            raise
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def _forget_after(self, step: int, rated: bool) -> None:
        """Drop the lines of steps that are going to be done again, and lines that are damaged."""
        damaged = 0
        try:
            with open_regular(self._path) as log, atomic_write(self._path) as kept:
                while line := log.readline(LINE_LIMIT):
                    entry = _entry(line)
                    if entry is None:
                        damaged += 1  # a crash may have cut it short
                        continue
                    again = entry["kind"] == "eval" and entry["step"] == step and not rated
                    if entry["step"] <= step and not again:
                        kept.write(line)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(f"{self._path}: {error}; move it elsewhere") from error
        if damaged:
            terminal.say(f"note: {self._path}: {damaged} damaged line(s) are left out")

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def train(self, step: int, epoch: int, metrics: dict[str, float], waiting: float) -> None:
        """Log a training step; `waiting` is the share of time spent waiting for data."""
        self._write("train", step, epoch, metrics | {"waiting": waiting})
        self._bar.set_postfix_str(
            f"epoch {epoch} loss {metrics['loss']:.3f} (qfl {metrics['loss_qfl']:.3f} "
            f"box {metrics['loss_bbox']:.3f} dfl {metrics['loss_dfl']:.3f}) "
            f"lr {metrics['learning_rate']:.2g} {metrics['images_per_second']:.0f} img/s "
            f"data {waiting:.0%}",
            refresh=False,
        )

    def evaluated(self, step: int, epoch: int, metrics: dict[str, Any]) -> None:
        """Log an evaluation."""
        numbers = {k: v for k, v in metrics.items() if k != "per_class"}
        self._write("eval", step, epoch, numbers, per_class=metrics["per_class"])
        self.say(
            f"step {step} (epoch {epoch}): AP {metrics['AP']:.4f}  AP50 {metrics['AP50']:.4f}  "
            f"AP75 {metrics['AP75']:.4f}"
        )

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """Keep an image uint8 BGR in `pictures/` and on the board."""
        folder = make_folder(self.workdir / "pictures")
        visualize.save_image(folder / f"{name}_{step:07d}.jpg", image)
        with reporting_write_errors(self._folder):
            self._board.image(name, image[..., ::-1], step)

    def say(self, line: str) -> None:
        """Print a line without tearing the bar."""
        terminal.say(line)

    def _write(self, kind: str, step: int, epoch: int, numbers: dict[str, float], **more: Any):
        known = {name: x if math.isfinite(x) else None for name, x in numbers.items()}  # to json
        line = {"kind": kind, "step": step, "epoch": epoch, **known, **more}
        with reporting_write_errors(self._path):
            self._file.write(json.dumps(line) + "\n")
        curves = {f"{kind}/{name}": value for name, value in known.items() if value is not None}
        with reporting_write_errors(self._folder):
            self._board.scalars(curves, step)

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        try:
            with reporting_write_errors(self._path):
                self._file.close()
        finally:
            with reporting_write_errors(self._folder):
                self._board.close()


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line of the log; None if it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(entry, dict) and isinstance(entry.get("kind"), str)
    return entry if sound and type(entry.get("step")) is int and line.endswith(b"\n") else None


class NullLogger:
    """In place of a `MetricLogger` where another process writes it."""

    def advance(self) -> None:
        """Nothing."""

    def train(self, step: int, epoch: int, metrics: dict[str, float], waiting: float) -> None:
        """Nothing."""

    def evaluated(self, step: int, epoch: int, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
