"""What was measured of a run's checkpoints: a file in each, from which the best one follows."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanodet_jax import digests
from nanodet_jax.errors import first_line
from nanodet_jax.files import write_json
from nanodet_jax.terminal import say

METRIC = "AP"  # the more, the better
FILE = "metrics.json"


class Ratings:
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
            write_json(self._folder / str(step) / FILE, digests.signed(metrics))
        self._known[step] = metrics

    def _read(self, step: int) -> dict[str, Any] | None:
        path = self._folder / str(step) / FILE
        try:
            metrics = digests.verified(json.loads(path.read_bytes()))
            return metrics if metrics[METRIC] is not None else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, RecursionError) as error:
            reason = first_line(error)
            say(f"note: {path}: is damaged ({reason}); this step is taken as unrated")
            return None
