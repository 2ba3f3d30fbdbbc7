"""`train.py` in several processes: equal to one process, stopped and killed together."""

import contextlib
import functools
import signal
import time

import jax
import numpy as np
import pytest

from configs import shapes
from nanodet_jax import train_and_evaluate
from nanodet_jax.evaluation.coco_metrics import to_json
from nanodet_jax.io.torch_names import flatten
from nanodet_jax.training.metric_logger import MetricLogger
from tests.runs import SHALLOW_TRAIN, final_state, journal
from tests.runtime.test_distributed import finish, free_port, start
from tests.tools.many_devices import differences, worst
from tests.training.test_loop import signal_at

pytestmark = pytest.mark.long
EACH, STEPS, BATCH = 4, 8, 8
NETWORK = {"input_size": (64, 64), "model.channels": 32, "model.stacked_convs": 1}


def settings_of(trained):
    """Return settings of two epochs from weights that detect something.

    Two or four processes cannot split the validation images evenly. The optimizer is
    SGD, because AdamW turns rounding errors into steps of full size.
    """
    return NETWORK | {
        "model.sync_batch_norm": True,
        "data.train_size": EACH * BATCH,
        "data.val_size": 49,
        "data.batch_size": BATCH,
        "training.init_weights": str(trained),
        "training.optimizer": "sgd",
        "training.learning_rate": 1e-3,
        "training.steps": STEPS,
        "training.log_every": 1,
    }


def config_with(settings):
    config = shapes.get_config()
    for name, value in settings.items():
        *parts, last = name.split(".")
        setattr(functools.reduce(getattr, parts, config), last, value)
    return config


def start_processes(workdir, settings, count):
    """Start a process of `train.py` several times, with the shallow backbone of these tests."""
    given = settings | {
        "distributed.coordinator": f"127.0.0.1:{free_port()}",
        "distributed.num_processes": count,
    }
    plain = {name: str(value).strip("()") for name, value in given.items()}
    flags = [f"--config.{name}={value}" for name, value in plain.items()]
    return [
        start(
            [
                SHALLOW_TRAIN,
                f"--workdir={workdir}",
                f"--config.distributed.process_index={i}",
                *flags,
            ]
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Train initial weights, and return the settings of the runs to compare."""
    workdir = tmp_path_factory.mktemp("trained")
    longer = {
        "data.train_size": 256,
        "data.val_size": 8,
        "training.steps": 320,
        "training.eval_every": 20,
    }
    metrics = train_and_evaluate(config_with(NETWORK | longer | {"training.devices": 1}), workdir)
    assert metrics["AP50"] > 0.02
    return settings_of(workdir)


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """Train in one process on one device; return the workdir and the metrics."""
    workdir = tmp_path_factory.mktemp("alone")
    return workdir, train_and_evaluate(config_with(settings | {"training.devices": 1}), workdir)


@pytest.fixture(scope="module")
def together(settings, tmp_path_factory):
    """Return a function that trains in N processes and returns workdir, exit codes and output."""

    @functools.cache
    def run(count):
        workdir = tmp_path_factory.mktemp("together")
        ended = finish(start_processes(workdir, settings, count), 280)
        assert [code for code, _, _ in ended] == [0] * count, ended
        return workdir, ended

    return run


def assert_same_state(ours, theirs):
    """Compare states to 1e-6 of a scale.

    The scale is the standard deviation for means, and the size of all gradients for momentum. Some
    means and gradients are close to zero: an earlier batch norm centers the values, or a later
    one removes their mean.
    """
    largest, name = worst(differences(ours.params, theirs.params))
    assert largest < 1e-6, name
    largest, name = worst(differences(ours.opt_state, theirs.opt_state, smallest=1.0))
    assert largest < 1e-6, name
    ours, theirs = flatten(ours.batch_stats), flatten(theirs.batch_stats)
    for name, expected in theirs.items():
        spread = theirs[name.removesuffix("mean").removesuffix("var") + "var"].max()
        scale = np.sqrt(spread) if name.endswith("mean") else spread
        assert np.abs(ours[name] - expected).max() < 1e-6 * scale, name


@pytest.mark.parametrize("count", [2, 4])
def test_run_of_many_processes_equals_that_of_one(count, alone, together):
    expected, metrics = alone
    workdir, ended = together(count)
    lines = journal(workdir)
    for line, other in zip(lines, journal(expected), strict=True):
        if line["kind"] == "eval":
            assert line == other  # all metrics, to the last digit
            continue
        assert line.pop("kind") == other.pop("kind") == "train"
        assert line["positives"] == other["positives"]
        assert line == pytest.approx(other, rel=1e-6)
    assert {k: v for k, v in lines[-1].items() if k not in ("kind", "step", "epoch")} == to_json(
        metrics
    )
    assert metrics["AP50"] > 0.02
    ours, theirs = (final_state(folder, STEPS) for folder in (workdir, expected))
    assert_same_state(ours, theirs)
    said = ended[0][1]
    each = f"{BATCH} images, {BATCH // count} on each of {count} cpu device(s) of {count} processes"
    assert each in said
    assert not any("step" in out for _, out, _ in ended[1:])  # only the first process prints
    kept = [path.relative_to(expected) for path in expected.rglob("*.jpg")]
    assert sorted(kept) == sorted(path.relative_to(workdir) for path in workdir.rglob("*.jpg"))


def test_run_resumes_with_another_number_of_devices(settings, alone, tmp_path):
    """Four devices up to the third step, two up to the sixth, eight to the end."""
    for devices, steps_here in ((4, 3), (2, 3), (8, STEPS)):
        config = config_with(settings | {"training.devices": devices})
        with pytest.MonkeyPatch.context() as patch:
            signal_at(patch, MetricLogger, "advance", steps_here, signal.SIGTERM)
            with contextlib.suppress(SystemExit):
                train_and_evaluate(config, tmp_path)
    expected, metrics = alone
    assert_same_state(final_state(tmp_path, STEPS), final_state(expected, STEPS))
    lines = journal(tmp_path)
    assert [line["step"] for line in lines] == [line["step"] for line in journal(expected)]
    assert {k: v for k, v in lines[-1].items() if k not in ("kind", "step", "epoch")} == to_json(
        metrics
    )


def wait_for_step(workdir, step, seconds=120):
    """Wait until a run has logged a step."""
    path, end = workdir / "metrics.jsonl", time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in {seconds} s")


def test_run_resumes_after_sigterm_and_sigkill_of_a_process(settings, together, tmp_path):
    """SIGTERM to the second process stops both after a step; the first one detects a SIGKILL."""
    processes = start_processes(tmp_path, settings, 2)
    wait_for_step(tmp_path, 1)
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [code for code, _, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    assert "stopped and saved at step" in ended[0][1]

    processes = start_processes(tmp_path, settings, 2)
    wait_for_step(tmp_path, 6)
    processes[1].kill()
    started = time.monotonic()
    (code, _, error), _ = finish(processes)
    assert time.monotonic() - started < 10
    assert code == 2
    assert "error: process 0: a process of this run ended or cannot be reached" in error

    ended = finish(start_processes(tmp_path, settings, 2), 200)
    assert [code for code, _, _ in ended] == [0, 0], ended
    workdir, _ = together(2)
    ours, theirs = (final_state(folder, STEPS) for folder in (tmp_path, workdir))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert journal(tmp_path) == journal(workdir)
