"""Logs of a training run: progress, `metrics.jsonl`, TensorBoard and pictures."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanodet_jax import terminal, visualize
from nanodet_jax.errors import UserError, reporting_write_errors
from nanodet_jax.evaluation.coco_metrics import format_value, to_json
from nanodet_jax.files import NO_FOLLOW, atomic_write, make_folder, open_regular
from nanodet_jax.progress import MainBar, output
from nanodet_jax.training.evaluation_table import EvaluationTable
from nanodet_jax.training.tensorboard import EventWriter

SHOWN = ("AP", "AP50", "AP75")  # metrics in the line that reports an evaluation
LINE_LIMIT = 1 << 24  # bytes; an evaluation of 10,000 classes takes about a million
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_FOLLOW


class MetricLogger:
    """Log a training run to its workdir and to the terminal or notebook.

    A terminal or notebook shows a progress bar. A notebook also shows a table of the evaluations.
    Other outputs, such as files, get a line for each logged step.

    A resumed run first removes the entries of all steps that it will run again, so that no entry is
    written twice.

    Args:
      workdir: folder of the run.
      start_step: steps done so far.
      total_steps: number of steps of the whole run.
      start_evaluated: whether the evaluation at `start_step`, if one is due, is complete.

    Attributes:
      workdir: contains `metrics.jsonl`, `tensorboard/` and `pictures/`.

    Raises:
      UserError: from every method that writes, naming the file or folder that cannot be written to.
    """

    def __init__(
        self, workdir: Path, start_step: int, total_steps: int, start_evaluated: bool = True
    ) -> None:
        self.workdir = workdir
        self._path, self._folder = workdir / "metrics.jsonl", workdir / "tensorboard"
        self._remove_entries_after(start_step, start_evaluated)
        with reporting_write_errors(self._folder):
            self._events = EventWriter(self._folder, start_step + 1)
        try:
            with reporting_write_errors(self._path):
                self._file = os.fdopen(os.open(self._path, APPEND, 0o666), "a", buffering=1)
        except UserError:
            self._events.close()
            raise
        self._total_steps, self._output = total_steps, output()
        self._bar = MainBar(total_steps, start_step, "step")
        self._table = EvaluationTable() if self._output == "notebook" else None

    def _remove_entries_after(self, step: int, evaluated: bool) -> None:
        """Remove the entries of steps that will run again, and damaged lines."""
        damaged = 0
        try:
            with open_regular(self._path) as log, atomic_write(self._path) as kept:
                while line := log.readline(LINE_LIMIT):
                    entry = _entry(line)
                    if entry is None:
                        damaged += 1  # for example, cut off by a crash
                        continue
                    repeated = entry["kind"] == "eval" and entry["step"] == step and not evaluated
                    if entry["step"] <= step and not repeated:
                        kept.write(line)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{self._path}: {reason}; move this file elsewhere") from error
        if damaged:
            terminal.say(f"note: {self._path}: removed {damaged} damaged line(s)")

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        self._bar.update()

    def log_train(self, step: int, epoch: int, metrics: dict[str, float], waiting: float) -> None:
        """Log the metrics of a training step, and the fraction of time spent waiting for data."""
        self._write("train", step, epoch, metrics | {"waiting": waiting})
        text = (
            f"loss {metrics['loss']:.3f} (qfl {metrics['loss_qfl']:.3f} "
            f"box {metrics['loss_bbox']:.3f} dfl {metrics['loss_dfl']:.3f}) "
            f"lr {metrics['learning_rate']:.2g} {metrics['images_per_second']:.0f} img/s "
            f"data {waiting:.0%}"
        )
        self._bar.set_text(f"epoch {epoch} {text}")
        if self._output == "lines":
            self.say(f"step {step} of {self._total_steps} (epoch {epoch}): {text}")

    def log_evaluation(self, step: int, epoch: int, metrics: dict[str, Any]) -> None:
        """Log the metrics of an evaluation, as returned by `coco_metrics.coco_metrics`."""
        numbers = to_json(metrics)
        per_class = numbers.pop("per_class")
        self._write("eval", step, epoch, numbers, per_class=per_class)
        if self._table is not None:
            self._table.add(step, epoch, metrics)
            return
        shown = (f"{name} {format_value(metrics[name], 4).strip()}" for name in SHOWN)
        self.say(f"step {step} (epoch {epoch}): {'  '.join(shown)}")

    def log_image(self, name: str, step: int, image: np.ndarray) -> None:
        """Write an image, uint8 BGR [H, W, 3], to `pictures/` and TensorBoard."""
        folder = make_folder(self.workdir / "pictures")
        visualize.save_image(folder / f"{name}_{step:07d}.jpg", image)
        with reporting_write_errors(self._folder):
            self._events.add_image(name, image[..., ::-1], step)

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        terminal.say(line)

    def _write(
        self, kind: str, step: int, epoch: int, numbers: Mapping[str, float | None], **more: Any
    ) -> None:
        # JSON has neither nan nor infinity.
        finite = {
            name: x if x is not None and math.isfinite(x) else None for name, x in numbers.items()
        }
        line = {"kind": kind, "step": step, "epoch": epoch, **finite, **more}
        with reporting_write_errors(self._path):
            self._file.write(json.dumps(line) + "\n")
        scalars = {f"{kind}/{name}": value for name, value in finite.items() if value is not None}
        with reporting_write_errors(self._folder):
            self._events.add_scalars(scalars, step)

    def close(self) -> None:
        """Close the progress bar and all files."""
        self._bar.close()
        try:
            with reporting_write_errors(self._path):
                self._file.close()
        finally:
            with reporting_write_errors(self._folder):
                self._events.close()


def _entry(line: bytes) -> dict[str, Any] | None:
    """Parse a line of `metrics.jsonl`; return None if it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(entry, dict) and isinstance(entry.get("kind"), str)
    return entry if valid and type(entry.get("step")) is int and line.endswith(b"\n") else None


class NullLogger:
    """Stand-in for `MetricLogger` that logs nothing, for processes that write no logs."""

    def advance(self) -> None:
        """Do nothing."""

    def log_train(self, step: int, epoch: int, metrics: dict[str, float], waiting: float) -> None:
        """Do nothing."""

    def log_evaluation(self, step: int, epoch: int, metrics: dict[str, Any]) -> None:
        """Do nothing."""

    def log_image(self, name: str, step: int, image: np.ndarray) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
