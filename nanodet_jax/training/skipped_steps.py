"""Training steps whose update was skipped.

An update is skipped if the loss, a gradient or a batch statistic is not finite.
"""

from collections.abc import Callable

import jax

from nanodet_jax.errors import UserError
from nanodet_jax.terminal import join_first

NAMED_IMAGES = 8  # maximum number of images that a message names


class SkippedSteps:
    """Count skipped steps, and stop the run after too many consecutive ones.

    Flags stay on the device until `report`, so that no step waits for them.

    Args:
      max_consecutive: number of consecutive skipped steps that stops the run.
      image_names: returns the names of the images of a step.

    Attributes:
      total: number of skipped steps since the start of this process.
    """

    def __init__(self, max_consecutive: int, image_names: Callable[[int], list[str]]) -> None:
        self._max_consecutive, self._image_names = max_consecutive, image_names
        self._flags: list[tuple[int, jax.Array]] = []
        self._consecutive = 0
        self.total = 0

    def add(self, step: int, flag: jax.Array) -> None:
        """Add the metric `skipped` of a step."""
        self._flags.append((step, flag))

    def report(self, say: Callable[[str], None]) -> None:
        """Print which steps were skipped since the last report, with their images.

        Args:
          say: prints a line.

        Raises:
          UserError: after too many consecutive skipped steps. The weights are still the last good
            ones.
        """
        flags, self._flags = jax.device_get(self._flags), []
        for step, flag in flags:
            if not flag:
                self._consecutive = 0
                continue
            self._consecutive += 1
            self.total += 1
            if self._consecutive > self._max_consecutive:
                continue
            names = self._image_names(int(step))
            say(
                f"step {step}: the loss, a gradient or a batch statistic is not finite; update "
                f"skipped; images: {join_first(names, NAMED_IMAGES)}"
            )
        if self._consecutive >= self._max_consecutive:
            raise UserError(
                "the loss, a gradient or a batch statistic was not finite in "
                f"{self._consecutive} steps in a row: lower config.training.learning_rate, or "
                "check the images named above; the last good weights are kept"
            )
