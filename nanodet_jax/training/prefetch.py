"""Batches on the devices ahead of the steps that eat them."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

AHEAD = 2  # batches on the devices that no step has taken yet


class Prefetch:
    """Moves batches to the devices in a thread, while these are busy with earlier ones.

    Attributes:
      waited: seconds, so far, in which the devices had nothing to do for want of a batch.
    """

    def __init__(self, batches: Iterator[Any], place: Callable[[Any], Any]) -> None:
        self._batches, self._place = batches, place
        self._mover = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._moving = deque(self._mover.submit(self._move) for _ in range(AHEAD))
        self._before: Any = None
        self.waited = 0.0

    def next(self, running: Any) -> Any:
        """The next batch, placed.

        Args:
          running: an output of the step that was started last, None at first. When this returns,
            all earlier steps have ended: where the host is quicker than the devices, what they
            have yet to do would otherwise pile up in their memory.
        """
        jax.block_until_ready(self._before)
        self._before = running
        moving = self._moving.popleft()
        if not moving.done():
            jax.block_until_ready(running)  # for so long the devices do not wait
        asked = time.perf_counter()
        batch = moving.result()
        self.waited += time.perf_counter() - asked
        self._moving.append(self._mover.submit(self._move))
        return batch

    def close(self) -> None:
        """Move no more."""
        self._mover.shutdown(wait=False, cancel_futures=True)

    def _move(self) -> Any:
        return self._place(next(self._batches))
