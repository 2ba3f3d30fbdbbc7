"""`train.py` in several processes: the run that one process makes, and how they end together.

Two devices of one process sum the same parts in the same order as two processes with a device each,
so that all is compared to the last bit.
"""

import signal
import sys
import time

import jax
import numpy as np
import pytest

from nanodet_jax import train_and_evaluate
from tests.test_hosts import finish, free_port, start
from tests.training.test_loop import final_state, journal, tiny_config

EACH, STEPS = 8, 16


def config_of(count):
    """Two epochs; seven validation images, which neither two nor four processes share evenly."""
    config = tiny_config()
    config.model.sync_batch_norm = True
    config.data.train_size, config.data.val_size = EACH * config.data.batch_size, 7
    config.training.steps = STEPS
    config.training.devices = count
    return config


def door(workdir, count):
    """`train.py` with `config_of`, once per process."""
    config, port = config_of(count), free_port()
    given = {
        "input_size": "64,64",
        "model.channels": config.model.channels,
        "model.stacked_convs": config.model.stacked_convs,
        "model.sync_batch_norm": True,
        "data.train_size": config.data.train_size,
        "data.val_size": config.data.val_size,
        "data.batch_size": config.data.batch_size,
        "training.steps": STEPS,
        "training.warmup_steps": config.training.warmup_steps,
        "training.log_every": 1,
        "training.coordinator": f"127.0.0.1:{port}",
        "training.processes": count,
    }
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    return [
        start(["train.py", f"--workdir={workdir}", f"--config.training.process={i}", *flags])
        for i in range(count)
    ]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def alone(request, tmp_path_factory):
    """Number of devices, workdir and metrics of a single process that has so many."""
    if jax.local_device_count() < request.param:
        pytest.skip(f"needs {request.param} devices, and XLA_FLAGS was set otherwise")
    workdir = tmp_path_factory.mktemp("alone")
    return request.param, workdir, train_and_evaluate(config_of(request.param), workdir)


def assert_same_run(workdir, alone):
    count, expected, metrics = alone
    ours, theirs = final_state(workdir, STEPS), final_state(expected, STEPS)
    lines, others = journal(workdir), journal(expected)
    if count == 2:
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        assert lines == others
    else:  # four numbers are summed in another order
        for line, other in zip(lines, others, strict=True):
            if line["kind"] == "train":
                assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert {k: v for k, v in lines[-1].items() if k not in ("kind", "step", "epoch")} == metrics


@pytest.mark.slow
def test_processes_make_the_run_of_one(alone, tmp_path):
    count, expected, _ = alone
    ended = finish(door(tmp_path, count), 200)
    assert [code for code, _, _ in ended] == [0] * count, ended
    assert_same_run(tmp_path, alone)
    said = ended[0][1]
    assert f"4 images, {4 // count} on each of {count} cpu device(s) of {count} processes" in said
    assert all("step" not in out for _, out, _ in ended[1:])  # one tells
    kept = [path.relative_to(expected) for path in expected.rglob("*.jpg")]
    assert sorted(kept) == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.jpg"))


def when_at_step(workdir, step, seconds=120):
    """Wait until a run has told of this step."""
    path, end = workdir / "metrics.jsonl", time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in {seconds} s")


@pytest.mark.slow
@pytest.mark.parametrize("alone", [2], indirect=True)
def test_stopped_killed_and_resumed(alone, tmp_path):
    """SIGTERM to the second process stops both; SIGKILL is noticed by the first."""
    processes = door(tmp_path, 2)
    when_at_step(tmp_path, 3)
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [code for code, _, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    assert "stopped and saved at step" in ended[0][1]

    processes = door(tmp_path, 2)
    when_at_step(tmp_path, 10)
    processes[1].kill()
    began = time.monotonic()
    (code, _, error), _ = finish(processes)
    print(f"the other process ended after {time.monotonic() - began:.1f} s", file=sys.stderr)
    assert code == 2
    assert "error: process 0: a process of this run ended or cannot be reached" in error

    ended = finish(door(tmp_path, 2), 200)
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert_same_run(tmp_path, alone)
