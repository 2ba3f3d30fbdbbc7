"""`build`: what it opens is closed again where a later part fails."""

import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.io.checkpoint import Checkpoints
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
    "replicate": ["Prefetch", "MetricLogger", "Checkpoints"],
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
