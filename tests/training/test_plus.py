"""Training of NanoDet-Plus: moving average, guidance, and resuming a stopped run."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes
from nanodet_jax import train_and_evaluate
from nanodet_jax.io import torch_names
from nanodet_jax.io.checkpoint import CHECKPOINTS
from nanodet_jax.io.weights import load_entries, load_weights
from nanodet_jax.models.guidance import strip_guidance
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables
from nanodet_jax.training.history import read_history
from nanodet_jax.training.step import ema_weight, update_ema
from tests.runs import assert_same_end, final_state, journal
from tests.training.test_loop import one_device  # noqa: F401

pytestmark = pytest.mark.slow

STEPS, BATCH = 4, 4


def tiny_config():
    """Return a config of two epochs of two steps; the guidance is detached in the second."""
    config = shapes.get_config("nanodet-plus-m-tiny")
    config.input_size = (64, 64)
    config.model.stacked_convs = config.model.guidance_convs = 1
    config.model.kernel_size, config.model.extra_level = 3, False  # compile in half the time
    config.model.guidance_channels = 32
    config.data.train_size = 2 * BATCH
    config.data.val_size = 4
    config.data.batch_size = BATCH
    config.training.steps = STEPS
    config.training.detach_epoch = 1
    config.training.warmup_steps = 1
    config.training.eval_every = 2
    config.training.log_every = 1
    return config


@pytest.fixture(scope="module")
def unbroken(one_device, shallow, tmp_path_factory):  # noqa: F811
    workdir = tmp_path_factory.mktemp("plus")
    train_and_evaluate(tiny_config(), workdir)
    return workdir


def test_resumed_run_equals_an_uninterrupted_one(unbroken, tmp_path):
    """Resume from the first of two checkpoints, as if the run had been killed after it."""
    workdir = tmp_path / "resumed"
    shutil.copytree(unbroken, workdir)
    shutil.rmtree(workdir / CHECKPOINTS / str(STEPS))
    train_and_evaluate(tiny_config(), workdir)
    assert [leg["start_step"] for leg in read_history(workdir)] == [0, STEPS // 2]
    assert_same_end(workdir, unbroken, STEPS)


def test_losses_of_both_branches_are_logged(unbroken):
    for line in journal(unbroken):
        if line["kind"] == "train":
            parts = [line[prefix + part] for prefix in ("loss_", "aux_loss_")
                     for part in ("qfl", "bbox", "dfl")]  # fmt: skip
            assert line["loss"] == pytest.approx(sum(parts), rel=1e-5)
            assert min(parts) > 0


def test_inference_weights_are_the_average_without_guidance(unbroken):
    state = final_state(unbroken, STEPS)
    loaded = torch_names.flatten(load_weights(unbroken).variables)
    average = torch_names.flatten(strip_guidance(state.ema))
    assert set(loaded) == set(average)
    assert all(np.array_equal(loaded[path], average[path]) for path in loaded)
    current = torch_names.flatten(state.variables)
    moved = [path for path in loaded if not np.array_equal(loaded[path], current[path])]
    assert len(moved) > len(loaded) / 2


def test_fine_tuning_weights_include_the_guidance(unbroken):
    entries = load_entries(unbroken)
    assert any(name.startswith("aux_head.") for name in entries)
    like = abstract_variables(build_model(load_weights(unbroken).config.model), guided=True)
    restored = torch_names.flatten(torch_names.convert(entries, like))
    average = torch_names.flatten(final_state(unbroken, STEPS).ema)
    assert all(np.array_equal(restored[path], average[path]) for path in average)


def test_moving_average_follows_the_originals_ramp():
    """a = a (1 - d) + v d, with d from the number of the step after the update."""
    random = np.random.default_rng(0)
    start, values = random.normal(size=3), random.normal(size=(5, 3))
    average, expected = {"leaf": jnp.asarray(start, jnp.float32)}, start
    for step, value in enumerate(values, start=1999):
        weight = 0.9998 * np.exp(-(1 + step) / 2000) + 0.0002
        expected = expected * (1 - weight) + value * weight
        average = update_ema(average, {"leaf": jnp.asarray(value)}, jnp.asarray(step), 0.9998)
    np.testing.assert_allclose(average["leaf"], expected, rtol=1e-6)
    assert 0.36 < ema_weight(jnp.asarray(1999), 0.9998) < 0.37
    assert ema_weight(jnp.asarray(10**6), 0.9998) == pytest.approx(0.0002, rel=1e-3)
