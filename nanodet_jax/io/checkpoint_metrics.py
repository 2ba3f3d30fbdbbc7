"""Metrics of a run, one file in each checkpoint. They determine the best checkpoint."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanodet_jax.errors import first_line
from nanodet_jax.evaluation.coco_metrics import METRIC_DESCRIPTIONS
from nanodet_jax.files import read_json, write_json
from nanodet_jax.io import checksums
from nanodet_jax.terminal import printable, say

METRIC = "AP"  # higher is better
FILE = "metrics.json"
PER_CLASS = "per_class"
CLASS_METRICS = {"AP", "AP50"}


class CheckpointMetrics:
    """Metrics by step. They are read from the checkpoints, so no separate list can disagree."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._loaded: dict[int, dict[str, Any] | None] = {}

    def get(self, step: int) -> dict[str, Any] | None:
        """Return the metrics of a checkpoint, or None if it has none or they are damaged.

        Damaged metrics are reported.
        """
        if step not in self._loaded:
            self._loaded[step] = self._read(step)
        return self._loaded[step]

    def best_of(self, steps: Iterable[int]) -> int | None:
        """Return the step with the best METRIC, the latest in a tie; None if none has metrics."""
        values = {step: metrics[METRIC] for step in steps if (metrics := self.get(step))}
        return max(values, key=lambda step: (values[step], step)) if values else None

    def forget(self, step: int) -> None:
        """Forget the metrics of a step whose checkpoint will be saved again."""
        self._loaded[step] = None

    def save(self, step: int, metrics: dict[str, Any], writing: bool = True) -> None:
        """Set the metrics of a saved checkpoint. The file is written only if `writing` is True.

        Raises:
          UserError: if they cannot be written.
        """
        if writing:
            write_json(self._folder / str(step) / FILE, checksums.add_digest(metrics))
        self._loaded[step] = metrics

    def _read(self, step: int) -> dict[str, Any] | None:
        path = self._folder / str(step) / FILE
        try:
            return check_metrics(checksums.verify(read_json(path)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            reason = first_line(error)
            say(f"note: {path}: is damaged ({reason}); this step counts as not evaluated")
            return None


def check_metrics(metrics: Any) -> dict[str, Any]:
    """Return metrics after checking that they have the format of `evaluation.coco_metrics`.

    The format is a dict of numbers by name. It also contains `per_class`, a dict from the name of
    each class to a dict of its numbers.

    Raises:
      ValueError: if they have a different format.
    """
    if not isinstance(metrics, dict):
        raise ValueError("it contains no metrics")
    per_class = metrics.get(PER_CLASS)
    if not isinstance(per_class, dict):
        raise ValueError(f"{PER_CLASS} is not an object")
    overall = {name: value for name, value in metrics.items() if name != PER_CLASS}
    _check_numbers("it", overall, METRIC_DESCRIPTIONS.keys())
    for name, numbers in per_class.items():
        _check_numbers(f"class {printable(name)}", numbers, CLASS_METRICS)
    return metrics


def _check_numbers(where: str, numbers: Any, required: Iterable[str]) -> None:
    if not isinstance(numbers, dict) or not numbers.keys() >= set(required):
        raise ValueError(f"{where} lacks some metrics")
    largest = sys.float_info.max  # excludes NaN, infinity and 10**400
    for name, value in numbers.items():
        if type(value) not in (int, float) or not -largest <= value <= largest:
            raise ValueError(f"{where}: {printable(name)} is not a finite number")
