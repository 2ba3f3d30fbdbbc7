"""Steps whose update was skipped, since their loss or gradient was not finite."""

from collections.abc import Callable

import jax

from nanodet_jax.errors import UserError
from nanodet_jax.terminal import join_first

NAMED = 8  # images of a batch


class Skips:
    """Counts them, and ends the run after too many in a row.

    Flags stay on the device until `tell`, so that no step waits for one.

    Args:
      most: in a row.
      images_of: names of the images of a step.
    """

    def __init__(self, most: int, images_of: Callable[[int], list[str]]):
        self._most, self._images_of = most, images_of
        self._flags: list[tuple[int, jax.Array]] = []
        self._in_a_row = 0
        self.total = 0  # since the start of this process

    def add(self, step: int, flag: jax.Array) -> None:
        """Note the metric `skipped` of a step."""
        self._flags.append((step, flag))

    def tell(self, say: Callable[[str], None]) -> None:
        """Say which of the steps since the last time were skipped, and what their images are.

        Raises:
          UserError: if there were too many in a row. The weights are those of before.
        """
        flags, self._flags = jax.device_get(self._flags), []
        for step, flag in flags:
            if not flag:
                self._in_a_row = 0
                continue
            self._in_a_row += 1
            self.total += 1
            if self._in_a_row > self._most:
                continue
            images = self._images_of(int(step))
            say(
                f"step {step}: loss or gradient is not finite, the update is skipped; its images: "
                f"{join_first(images, NAMED)}"
            )
        if self._in_a_row >= self._most:
            raise UserError(
                f"loss or gradient was not finite in {self._in_a_row} steps in a row: lower "
                "config.training.learning_rate, or look at the images named above; nothing of "
                "these steps is in the weights"
            )
