"""What was measured of a run's checkpoints: a file in each, from which the best one follows."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanodet_jax.errors import first_line
from nanodet_jax.evaluation.coco_metrics import METRIC_DESCRIPTIONS
from nanodet_jax.files import read_json, write_json
from nanodet_jax.io import checksums
from nanodet_jax.terminal import printable, say

METRIC = "AP"  # the more, the better
FILE = "metrics.json"
PER_CLASS = "per_class"
CLASS_METRICS = {"AP", "AP50"}


class CheckpointMetrics:
    """Those of the checkpoints in `folder`, by step; kept there alone, so that none disagree."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._known: dict[int, dict[str, Any] | None] = {}

    def of(self, step: int) -> dict[str, Any] | None:
        """Metrics of a checkpoint; None if it has none, or if they are damaged, which is told."""
        if step not in self._known:
            self._known[step] = self._read(step)
        return self._known[step]

    def best(self, steps: Iterable[int]) -> int | None:
        """The one with the highest METRIC, of equals the latest; None if none was rated."""
        rated = {step: metrics[METRIC] for step in steps if (metrics := self.of(step))}
        return max(rated, key=lambda step: (rated[step], step)) if rated else None

    def begin(self, step: int) -> None:
        """A checkpoint is being saved anew: nothing is known of it."""
        self._known[step] = None

    def note(self, step: int, metrics: dict[str, Any], writing: bool = True) -> None:
        """Metrics of a checkpoint that is there; written by one of several processes.

        Raises:
          UserError: if they cannot be written.
        """
        if writing:
            write_json(self._folder / str(step) / FILE, checksums.signed(metrics))
        self._known[step] = metrics

    def _read(self, step: int) -> dict[str, Any] | None:
        path = self._folder / str(step) / FILE
        try:
            return check_metrics(checksums.verified(read_json(path)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            reason = first_line(error)
            say(f"note: {path}: is damaged ({reason}); this step counts as not evaluated")
            return None


def check_metrics(metrics: Any) -> dict[str, Any]:
    """Metrics as `evaluation.coco_metrics` gives them: numbers by name, and those of each class.

    Raises:
      ValueError: if they are anything else.
    """
    if not isinstance(metrics, dict):
        raise ValueError("it holds no metrics")
    per_class = metrics.get(PER_CLASS)
    if not isinstance(per_class, dict):
        raise ValueError(f"{PER_CLASS} is no object")
    overall = {name: value for name, value in metrics.items() if name != PER_CLASS}
    for place, numbers, required in (
        ("it", overall, METRIC_DESCRIPTIONS.keys()),
        *(
            (f"class {printable(name)}", numbers, CLASS_METRICS)
            for name, numbers in per_class.items()
        ),
    ):
        if not isinstance(numbers, dict) or not numbers.keys() >= required:
            raise ValueError(f"{place} does not have all metrics")
        for name, value in numbers.items():
            if not _is_number(value):
                raise ValueError(f"{place} has {printable(name)} that is no finite number")
    return metrics


def _is_number(value: Any) -> bool:
    largest = sys.float_info.max  # NaN and infinity are not within it, nor is 10**400
    return type(value) in (int, float) and -largest <= value <= largest
