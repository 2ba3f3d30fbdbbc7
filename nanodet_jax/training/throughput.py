"""Speed of training, measured between two log lines."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nanodet_jax.training.prefetch import Prefetch


class Throughput:
    """Images per second, and the fraction of time that the devices wait for data.

    Args:
      batch_size: images per step, over all devices and processes.
      prefetch: measures the waiting time.
    """

    def __init__(self, batch_size: int, prefetch: Prefetch[Any, Any]):
        self._batch_size, self._prefetch = batch_size, prefetch
        self.restart()

    def restart(self) -> None:
        """Start a new interval."""
        self._steps, self._prefetch.wait_seconds = 0, 0.0
        self._start = time.perf_counter()

    def count_step(self) -> None:
        """Count one more step."""
        self._steps += 1

    def measure(self) -> tuple[float, float]:
        """Return images per second and the waiting fraction since `restart`."""
        elapsed = time.perf_counter() - self._start
        return self._steps * self._batch_size / elapsed, self._prefetch.wait_seconds / elapsed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent in this context from the measurement."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start
