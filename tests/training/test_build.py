"""`build`: what it opens is closed again if a later part fails."""

import jax
import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.runtime import backend
from nanodet_jax.training import build
from nanodet_jax.training.lock import lock_workdir
from nanodet_jax.training.metric_logger import MetricLogger
from nanodet_jax.training.prefetch import Prefetch
from tests.builders import tiny_config


def fail(*_, **__):
    raise UserError("failed on purpose")


@pytest.fixture
def closed(monkeypatch):
    """Record the classes whose `close` is called."""
    calls = []
    for cls in (Checkpoints, MetricLogger, Prefetch):

        def close(self, real=cls.close):
            calls.append(type(self).__name__)
            real(self)

        monkeypatch.setattr(cls, "close", close)
    return calls


PARTS = {
    "description": [],
    "MetricLogger": ["Checkpoints"],
    "upload_images": ["MetricLogger", "Checkpoints"],
    "unfold": ["MetricLogger", "Checkpoints"],
    "check_agreement": ["MetricLogger", "Checkpoints"],
    "make_augment": ["Prefetch", "MetricLogger", "Checkpoints"],
    "replicate": ["MetricLogger", "Checkpoints"],
}


@pytest.mark.parametrize("part", PARTS)
def test_build_that_fails_closes_what_it_opened(part, closed, tmp_path, monkeypatch):
    config = tiny_config()
    if part == "upload_images":
        config.data.augment = config.data.cache = "device"
    monkeypatch.setattr(build, "is_folded", lambda _: part == "unfold")
    monkeypatch.setattr(build, part, fail)
    with pytest.raises(UserError, match="failed on purpose"):
        build.build(config, tmp_path)
    assert closed == PARTS[part]
    lock_workdir(tmp_path).release()  # raises if the failed run still held it


def test_run_closes_what_build_opened(closed, tmp_path):
    with build.build(tiny_config(), tmp_path) as run:
        assert closed == [] and not run.resumed and run.length.total_steps == 8
        with pytest.raises(UserError, match="in use by another run"):
            lock_workdir(tmp_path)
    assert closed == ["Prefetch", "MetricLogger", "Checkpoints"]
    lock_workdir(tmp_path).release()


@pytest.mark.parametrize("devices", [1, 2])
def test_step_of_a_run_can_be_traced_on_its_devices(devices, tmp_path, monkeypatch):
    if jax.local_device_count() < devices:
        pytest.skip(f"needs {devices} devices, and XLA_FLAGS was set otherwise")
    monkeypatch.setattr(backend, "compiler_options", lambda: None)  # not for a nested program
    config = tiny_config()
    config.training.devices = devices
    with build.build(config, tmp_path) as run:
        batch = run.augment(run.prefetch.next(None))
        state, metrics = jax.eval_shape(run.train_step, run.state, batch)
        assert jax.tree.structure(state) == jax.tree.structure(run.state)
        assert metrics["loss"].shape == ()
