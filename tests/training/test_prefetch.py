"""Prefetching: order, depth, errors, and the time that counts as waiting."""

import itertools
import threading
import time
from contextlib import closing

import jax
import numpy as np
import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.training import prefetch as module
from nanodet_jax.training.prefetch import DEPTH, Prefetch

TIMEOUT = 30  # seconds


class Output:
    """Output of a step, for `jax.block_until_ready`."""

    def __init__(self, at_end=lambda: None):
        self.at_end, self.ended = at_end, False

    def block_until_ready(self):
        self.ended = True
        self.at_end()
        return self


def test_batches_are_returned_in_order_and_moved():
    with closing(Prefetch(itertools.count(), lambda batch: -batch)) as feed:
        assert [feed.next(None) for _ in range(20)] == [-i for i in range(20)]


def test_prefetch_loads_exactly_depth_batches_ahead():
    loaded = []

    def batches():
        for number in itertools.count():
            loaded.append(number)
            yield number

    with closing(Prefetch(batches(), lambda batch: batch)) as feed:
        for taken in range(5):
            deadline = time.monotonic() + TIMEOUT
            while len(loaded) < taken + DEPTH and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)  # time to load another one
            assert len(loaded) == taken + DEPTH
            assert feed.next(None) == taken


def test_loading_error_is_raised_when_its_batch_is_requested():
    def batches():
        yield "first"
        raise UserError("image.jpg is missing")

    with closing(Prefetch(batches(), lambda batch: batch)) as feed:
        assert feed.next(None) == "first"
        with pytest.raises(UserError, match=r"image\.jpg"):
            feed.next(None)


def test_next_waits_for_all_but_the_last_step():
    """When a batch is returned, only the step that was dispatched last may still be running."""
    steps = [Output() for _ in range(6)]
    with closing(Prefetch(itertools.count(), lambda batch: batch)) as feed:
        feed.next(None)
        for number, step in enumerate(steps):
            feed._queue[0].result(TIMEOUT)
            feed.next(step)
            assert [other.ended for other in steps] == [i < number for i in range(len(steps))]


def test_wait_seconds_counts_only_idle_devices(monkeypatch):
    """A step takes 100 s, and the batch is ready 7 s after its end."""
    clock, ended, read = [0.0], threading.Event(), threading.Event()

    def perf_counter():
        now = clock[0]
        if ended.is_set():
            read.set()
        return now

    def end():
        clock[0] += 100
        ended.set()

    def batches():
        yield 0
        assert read.wait(TIMEOUT)
        clock[0] += 7
        yield from (1, 2, 3)

    monkeypatch.setattr(module.time, "perf_counter", perf_counter)
    with closing(Prefetch(batches(), lambda batch: batch)) as feed:
        feed.next(None)
        feed.wait_seconds = 0.0
        assert feed.next(Output(end)) == 1
        assert feed.wait_seconds == 7
        feed._queue[0].result(TIMEOUT)
        feed.next(Output(lambda: clock.__setitem__(0, clock[0] + 100)))
        assert feed.wait_seconds == 7  # unchanged: the batch was ready


def test_numpy_batch_becomes_jax_arrays():
    batch = {"images": np.ones((2, 3), np.float32), "labels": np.zeros(2, np.int32)}
    with closing(Prefetch(itertools.repeat(batch), jax.device_put)) as feed:
        moved = feed.next(None)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(moved))
    jax.tree.map(np.testing.assert_array_equal, moved, batch)
