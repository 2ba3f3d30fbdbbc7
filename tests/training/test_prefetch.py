"""Batches arrive in order and ahead of time, and only what the devices miss counts as waiting."""

import itertools
import threading
import time
from contextlib import closing

import jax
import numpy as np
import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.training import prefetch as module
from nanodet_jax.training.prefetch import AHEAD, Prefetch

LONG = 30  # seconds after which a test has failed


class Running:
    """An output of a step, as `jax.block_until_ready` takes it."""

    def __init__(self, at_end=lambda: None):
        self.at_end, self.ended = at_end, False

    def block_until_ready(self):
        self.ended = True
        self.at_end()
        return self


def test_in_order_and_placed():
    with closing(Prefetch(itertools.count(), lambda batch: -batch)) as feed:
        assert [feed.next(None) for _ in range(20)] == [-i for i in range(20)]


def test_so_many_ahead_and_no_more():
    made = []

    def batches():
        for number in itertools.count():
            made.append(number)
            yield number

    with closing(Prefetch(batches(), lambda batch: batch)) as feed:
        for taken in range(5):
            deadline = time.monotonic() + LONG
            while len(made) < taken + AHEAD and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)  # in which it could make another
            assert len(made) == taken + AHEAD
            assert feed.next(None) == taken


def test_a_fault_is_told_where_its_batch_is_asked_for():
    def batches():
        yield "first"
        raise UserError("image.jpg is missing")

    with closing(Prefetch(batches(), lambda batch: batch)) as feed:
        assert feed.next(None) == "first"
        with pytest.raises(UserError, match=r"image\.jpg"):
            feed.next(None)


def test_steps_do_not_pile_up():
    """When a batch is handed out, only the step that was started last may still run."""
    steps = [Running() for _ in range(6)]
    with closing(Prefetch(itertools.count(), lambda batch: batch)) as feed:
        feed.next(None)
        for number, step in enumerate(steps):
            feed._moving[0].result(LONG)
            feed.next(step)
            assert [other.ended for other in steps] == [i < number for i in range(len(steps))]


def test_waiting_is_what_the_device_waits(monkeypatch):
    """A step that takes 100 s and, once it has ended, 7 s until the batch is there."""
    clock, ended, looked = [0.0], threading.Event(), threading.Event()

    def look():
        now = clock[0]
        if ended.is_set():
            looked.set()
        return now

    def end():
        clock[0] += 100
        ended.set()

    def batches():
        yield 0
        assert looked.wait(LONG)
        clock[0] += 7
        yield from (1, 2, 3)

    monkeypatch.setattr(module.time, "perf_counter", look)
    with closing(Prefetch(batches(), lambda batch: batch)) as feed:
        feed.next(None)
        feed.waited = 0.0
        assert feed.next(Running(end)) == 1
        assert feed.waited == 7
        feed._moving[0].result(LONG)
        feed.next(Running(lambda: clock.__setitem__(0, clock[0] + 100)))
        assert feed.waited == 7  # of a batch that is there, for nothing


def test_arrays_are_moved():
    batch = {"images": np.ones((2, 3), np.float32), "labels": np.zeros(2, np.int32)}
    with closing(Prefetch(itertools.repeat(batch), jax.device_put)) as feed:
        moved = feed.next(None)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(moved))
    jax.tree.map(np.testing.assert_array_equal, moved, batch)
