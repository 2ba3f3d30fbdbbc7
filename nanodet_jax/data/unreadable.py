"""Images that turn out to be unreadable in the middle of a run: told once, counted, bounded."""

import threading

from nanodet_jax.errors import UserError
from nanodet_jax.terminal import say

LISTED = 3  # in the message of a run that stops


class Unreadable:
    """The unreadable images among `total`; may be told of them by several threads.

    What it remembers decides what is printed and when to stop, never what takes an image's place:
    that is left to functions of the index alone, so that a resumed run meets the same batches.
    """

    def __init__(self, total: int, share: float) -> None:
        self._total, self._share = total, share
        self._reasons: dict[int, str] = {}  # not the errors, whose tracebacks hold on to pixels
        self._lock = threading.Lock()

    def add(self, index: int, error: UserError, instead: str) -> None:
        """Note that image `index` cannot be read, and say what happens instead.

        Raises:
          UserError: once there are more of them than the share allows, with the first few.
        """
        with self._lock:
            known = index in self._reasons
            self._reasons.setdefault(index, str(error))
            count = len(self._reasons)
        allowed = int(self._share * self._total)
        if count > allowed or count == self._total:
            first = "; ".join([*self._reasons.values()][:LISTED])
            raise UserError(
                f"{count} of {self._total} images are unreadable: {first}. "
                f"config.data.max_unreadable={self._share:g} allows {allowed}; `nanodet-jax "
                "doctor` lists them all"
            )
        if not known:
            say(f"note: {error}; {instead} ({count} such, at most {allowed} of {self._total})")
