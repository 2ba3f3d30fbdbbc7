"""Prefetch batches: move them to the devices before the steps that use them."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import jax

DEPTH = 2  # number of prefetched batches

HostBatch = TypeVar("HostBatch")
DeviceBatch = TypeVar("DeviceBatch")


class Prefetch(Generic[HostBatch, DeviceBatch]):
    """Load batches and move them to the devices in a thread, while the devices run earlier steps.

    Args:
      batches: yields batches on the host.
      to_device: moves a batch to the devices.

    Attributes:
      wait_seconds: total time for which the devices were idle because no batch was ready.
    """

    def __init__(
        self, batches: Iterator[HostBatch], to_device: Callable[[HostBatch], DeviceBatch]
    ) -> None:
        self._batches, self._to_device = batches, to_device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._queue = deque(self._thread.submit(self._load) for _ in range(DEPTH))
        self._previous_output: Any = None
        self.wait_seconds = 0.0

    def next(self, last_output: Any) -> DeviceBatch:
        """Return the next batch, on the devices.

        Args:
          last_output: an output of the step that was dispatched last; None before the first. On
            return, all steps before that one have finished. Without this limit, a fast host would
            dispatch steps whose buffers accumulate in the memory of the devices.
        """
        jax.block_until_ready(self._previous_output)
        self._previous_output = last_output
        future = self._queue.popleft()
        if not future.done():
            jax.block_until_ready(last_output)  # until then the devices are busy
        started = time.perf_counter()
        batch = future.result()
        self.wait_seconds += time.perf_counter() - started
        self._queue.append(self._thread.submit(self._load))
        return batch

    def close(self) -> None:
        """Stop loading batches."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _load(self) -> DeviceBatch:
        return self._to_device(next(self._batches))
