"""Folded weights regain batch statistics without a change of what the network computes."""

import jax
import numpy as np
import pytest

from nanodet_jax import backend, config
from nanodet_jax.convert import flatten, unflatten
from nanodet_jax.models.detector import build_model
from nanodet_jax.state import init_variables
from nanodet_jax.training.unfold import is_folded, unfold

MODEL = build_model(config.Model(num_classes=3, width=0.5, channels=32, stacked_convs=1))


@pytest.fixture(scope="module")
def folded():
    """Random weights whose batch norms are the identity plus a random bias."""
    random = np.random.RandomState(0)
    leaves = dict(flatten(init_variables(MODEL, 0)))
    for path, leaf in leaves.items():
        if path.endswith("/var"):
            leaves[path] = np.full_like(leaf, 1 - 1e-5)
        elif path.endswith("/bias"):
            leaves[path] = random.uniform(-0.5, 0.5, leaf.shape).astype(np.float32)
        elif path.endswith("/kernel"):
            fan_in = np.prod(leaf.shape[:3])
            leaves[path] = (random.randn(*leaf.shape) * np.sqrt(2 / fan_in)).astype(np.float32)
    return unflatten(leaves)


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(1).randn(4, 64, 64, 3).astype(np.float32)


def outputs(variables, images, train):
    apply = backend.jit(lambda v, x: MODEL.apply(v, x, train, mutable=["batch_stats"])[0])
    return jax.device_get(apply(variables, images))


def test_what_is_folded(folded):
    assert is_folded(folded)
    assert not is_folded(init_variables(MODEL, 0))


def test_evaluation_stays_and_training_joins_it(folded, images):
    unfolded = unfold(MODEL, folded, [images])
    before = outputs(folded, images, train=False)
    far = outputs(folded, images, train=True)
    after = outputs(unfolded, images, train=False)
    training = outputs(unfolded, images, train=True)
    for was, lost, now, trained in zip(before, far, after, training):
        scale = np.abs(was).max()
        assert np.abs(now - was).max() < 1e-4 * scale
        # The batch is the one measured, so training normalises by the very same statistics.
        assert np.abs(trained - was).max() < 1e-3 * scale
        assert np.abs(lost - was).max() > 0.1 * scale  # what folded weights would start from
    assert not is_folded(unfolded)


def test_moments_of_batches_are_averaged(folded, images):
    whole = flatten(unfold(MODEL, folded, [images]))
    halves = flatten(unfold(MODEL, folded, [images[:2], images[2:]]))
    for path, leaf in whole.items():
        np.testing.assert_allclose(halves[path], leaf, rtol=1e-3, atol=1e-4, err_msg=path)
