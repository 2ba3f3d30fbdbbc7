"""A clock that jumps by hours, forward and back."""

import itertools
import time

import pytest
from tensorboardX.proto.event_pb2 import SessionLog

from nanodet_jax import train_and_evaluate
from nanodet_jax.errors import UserError
from nanodet_jax.training.metric_logger import MetricLogger
from nanodet_jax.training.tensorboard import EventWriter
from tests.builders import tiny_config
from tests.runs import assert_same_end
from tests.training.test_loop import one_device as one_device
from tests.training.test_tensorboard import read_events

HOUR = 3600
STEPS = 8
NOW = 1_700_000_000.0


def all_events(folder):
    """Read the events in TensorBoard's order: the files sorted by name."""
    return [event for path in sorted(folder.iterdir()) for event in read_events(path)]


def test_event_writers_of_the_same_second_keep_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOW)
    for step in (1, 2, 3):
        board = EventWriter(tmp_path, first_step=step)
        board.add_scalars({"loss": float(step)}, step)
        board.close()
    steps = [event.step for event in all_events(tmp_path) if event.HasField("summary")]
    assert steps == [1, 2, 3]


def test_event_writer_started_after_the_clock_went_back_is_read_last(tmp_path, monkeypatch):
    for step, now in ((1, NOW), (5, NOW - 9 * HOUR), (9, NOW - HOUR)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        EventWriter(tmp_path, first_step=step).close()
    starts = [
        event.step for event in all_events(tmp_path)
        if event.session_log.status == SessionLog.START
    ]  # fmt: skip
    assert starts == [1, 5, 9]


def test_event_times_never_decrease(tmp_path, monkeypatch):
    jumps = itertools.cycle((0, -5 * HOUR, 7 * HOUR))
    monkeypatch.setattr(time, "time", lambda: NOW + next(jumps))
    board = EventWriter(tmp_path, first_step=1)
    for step in range(20):
        board.add_scalars({"loss": 1.0}, step)
    board.close()
    times = [event.wall_time for event in all_events(tmp_path)]
    assert times == sorted(times) and times[-1] - times[0] < HOUR


@pytest.mark.long
def test_run_with_a_clock_that_jumps_between_steps_ends_the_same(one_device, tmp_path, monkeypatch):
    train_and_evaluate(tiny_config(), tmp_path / "calm")
    real, advance, ahead, steps = time.time, MetricLogger.advance, [0], itertools.count(1)

    def jump(self):
        ahead[0] = {2: -5 * HOUR, 6: 7 * HOUR}.get(next(steps), ahead[0])
        advance(self)

    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    monkeypatch.setattr(MetricLogger, "advance", jump)
    train_and_evaluate(tiny_config(), tmp_path / "jumping")
    assert_same_end(tmp_path / "jumping", tmp_path / "calm", STEPS)


# Orbax drops coroutines when a save takes too long; Python warns once they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.long
def test_run_with_a_clock_that_jumps_during_a_save_ends_with_one_line_and_resumes(
    one_device, tmp_path, monkeypatch
):
    # Orbax limits the duration of a save by the wall clock. Each reading of it is hours later.
    train_and_evaluate(tiny_config(), tmp_path / "calm")
    real, jumps = time.time, itertools.count(0, 7 * HOUR)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + next(jumps))
        with pytest.raises(UserError, match=r"checkpoint cannot be written: .* timed out"):
            train_and_evaluate(tiny_config(), tmp_path / "jumping")
    train_and_evaluate(tiny_config(), tmp_path / "jumping")
    assert_same_end(tmp_path / "jumping", tmp_path / "calm", STEPS)
