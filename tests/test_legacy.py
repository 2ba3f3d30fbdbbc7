"""Loading files of an earlier version, which `tests/tools/make_legacy_run.py` has written.

Arrays must be equal bit for bit. Results computed from them may differ by rounding between library
versions.
"""

import json
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from nanodet_jax import train_and_evaluate
from nanodet_jax.config import from_json
from nanodet_jax.inference.detector import Detector
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.io.weights import load_weights
from tests.runs import final_state
from tests.tools.make_legacy_run import MORE, STEPS, detections, digest, losses, write_data

FOLDER = Path(__file__).parent / "reference" / "legacy"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
NOTES = [
    "note: config.training.rate_batch is now config.training.lr_base_batch_size",
    "note: config.training.rates is now config.training.lr_multipliers",
]


@pytest.fixture
def legacy(tmp_path, monkeypatch):
    """Change to a folder with `run/`, `weights.npz` and the data of the run."""
    with tarfile.open(FOLDER / "files.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    write_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_legacy_checkpoint_is_restored_bit_for_bit(legacy):
    state = final_state(legacy / "run", STEPS)
    assert int(state.step) == STEPS
    for part in ("params", "batch_stats", "ema", "opt_state"):
        assert digest(getattr(state, part)) == EXPECTED[part], part


def test_legacy_weights_of_workdir_and_npz_are_the_average_bit_for_bit(legacy):
    for source in ("run", "weights.npz"):
        assert digest(load_weights(legacy / source).variables) == EXPECTED["ema"], source


@pytest.mark.parametrize(("source", "recorded"), [("run", "run"), ("weights.npz", "npz")])
def test_legacy_weights_detect_the_recorded_objects(legacy, capsys, source, recorded):
    found, expected = detections(Detector.load(legacy / source)), EXPECTED[recorded]
    assert capsys.readouterr().out.splitlines() == NOTES
    assert found["count"] == expected["count"]
    assert found["class_names"] == expected["class_names"]
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-4)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.01)


@pytest.mark.slow
def test_legacy_run_resumes_with_the_recorded_losses(legacy):
    workdir = legacy / "run"
    config = from_json((workdir / "config.json").read_text())
    assert config.training.lr_base_batch_size == 8
    assert config.training.lr_multipliers.backbone == 0
    config.training.steps, config.training.devices = STEPS + MORE, 1
    train_and_evaluate(config, workdir)
    np.testing.assert_allclose(losses(workdir), EXPECTED["losses"], rtol=1e-3)
    with closing(Checkpoints(workdir, writing=False)) as checkpoints:
        assert checkpoints.latest_step() == STEPS + MORE
