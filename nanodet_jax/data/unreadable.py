"""Images that cannot be read during a run. Each is reported once, and their number is limited."""

import threading

from nanodet_jax.errors import UserError
from nanodet_jax.terminal import join_first, say

EXAMPLES = 3  # unreadable images that the error names


class UnreadableImages:
    """Unreadable images of a split; thread-safe.

    This object decides what is printed and when to stop. It does not decide which image replaces an
    unreadable one: that depends on the index alone, so a resumed run gets the same batches.

    Args:
      total: number of images in the split.
      max_fraction: largest fraction of these images that may be unreadable.
    """

    def __init__(self, total: int, max_fraction: float) -> None:
        self._total, self._max_fraction = total, max_fraction
        self._reasons: dict[int, str] = {}  # as text: tracebacks of errors keep pixels in memory
        self._lock = threading.Lock()

    def add(self, index: int, error: UserError, consequence: str) -> None:
        """Record that image `index` cannot be read; print the error and its consequence once.

        Raises:
          UserError: if more images are unreadable than `max_fraction` allows, or if all are
            unreadable. The message lists the first few.
        """
        with self._lock:
            known = index in self._reasons
            self._reasons.setdefault(index, str(error))
            count = len(self._reasons)
        allowed = int(self._max_fraction * self._total)
        if count > allowed or count == self._total:
            reasons = join_first([*self._reasons.values()], EXAMPLES, "; ")
            raise UserError(
                f"{count} of {self._total} images are unreadable: {reasons}. "
                f"config.data.max_unreadable={self._max_fraction:g} allows {allowed}; `nanodet-jax "
                "doctor` lists them all"
            )
        if not known:
            say(
                f"note: {error}; {consequence} (unreadable images so far: {count}; at most "
                f"{allowed} of {self._total} are allowed)"
            )
