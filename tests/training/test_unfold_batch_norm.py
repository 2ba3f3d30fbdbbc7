"""Unfolding restores batch statistics without changing inference."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pytest

from configs import coco
from nanodet_jax import config
from nanodet_jax.io.torch_names import flatten, unflatten
from nanodet_jax.models.guidance import GUIDANCE, copy_neck_to_guidance
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.runtime import backend
from nanodet_jax.state import abstract_variables, init_variables
from nanodet_jax.training.unfold_batch_norm import EPSILON, is_folded, unfold
from tests.models.test_guidance import with_tiny_backbone

MODEL = build_model(config.Model(num_classes=3, width=0.5, channels=32, stacked_convs=1))
PLUS = replace(
    coco.plus_model(0.5, 8),
    num_classes=3,
    kernel_size=3,
    extra_level=False,
    stacked_convs=1,
    guidance_channels=32,
    guidance_convs=1,
)


def as_published(shapes):
    """Draw random weights whose norms are the identity plus a random bias."""
    random = np.random.RandomState(0)
    leaves = {}
    for path, leaf in flatten(shapes).items():
        match path.rsplit("/", 1)[1]:
            case "mean":
                value = np.zeros(leaf.shape)
            case "var":
                value = np.full(leaf.shape, 1 - 1e-5)
            case "scale" | "factor":
                value = np.ones(leaf.shape)
            case "bias":
                value = random.uniform(-0.5, 0.5, leaf.shape)
            case "kernel":
                value = random.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:3]))
        leaves[path] = value.astype(np.float32)
    return unflatten(leaves)


@pytest.fixture(scope="module")
def folded():
    return as_published(abstract_variables(MODEL))


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(1).randn(4, 64, 64, 3).astype(np.float32)


def outputs(variables, images, train):
    apply = backend.jit(lambda v, x: MODEL.apply(v, x, train, mutable=["batch_stats"])[0])
    return jax.device_get(apply(variables, images))


def test_is_folded_tells_published_from_fresh_weights(folded):
    assert is_folded(folded)
    assert not is_folded(init_variables(MODEL, 0))


def test_unfold_keeps_inference_and_aligns_training(folded, images):
    unfolded = unfold(MODEL, folded, [images])
    before = outputs(folded, images, train=False)
    far = outputs(folded, images, train=True)
    after = outputs(unfolded, images, train=False)
    training = outputs(unfolded, images, train=True)
    for was, lost, now, trained in zip(before, far, after, training):
        scale = np.abs(was).max()
        assert np.abs(now - was).max() < 1e-4 * scale
        # Training normalizes by the statistics of the same batch that was measured.
        assert np.abs(trained - was).max() < 1e-3 * scale
        assert np.abs(lost - was).max() > 0.1 * scale  # without unfolding
    assert not is_folded(unfolded)


def test_unfold_averages_the_moments_of_batches(folded, images):
    whole = flatten(unfold(MODEL, folded, [images]))
    halves = flatten(unfold(MODEL, folded, [images[:2], images[2:]]))
    for path, leaf in whole.items():
        np.testing.assert_allclose(halves[path], leaf, rtol=1e-3, atol=1e-4, err_msg=path)


class Unfolded(NamedTuple):
    """Results of a NanoDet-Plus with guidance, on the images that were measured."""

    folded: dict
    unfolded: dict
    before: tuple  # predictions of head and guidance in evaluation, and outputs of batch norms
    after: tuple
    training: tuple  # predictions, and the statistics after a step
    updated: dict


@pytest.fixture(scope="module")
def plus():
    # Constant over squares of 8 x 8 pixels, which the backbone averages.
    images = np.random.RandomState(2).randn(4, 8, 8, 3).repeat(8, 1).repeat(8, 2)
    images = images.astype(np.float32)
    patch = with_tiny_backbone()
    model = build_model(PLUS)
    folded = copy_neck_to_guidance(as_published(abstract_variables(model, guided=True)))
    unfolded = unfold(model, folded, [images])
    run = partial(model.apply, method="branches")
    evaluate = backend.jit_once(
        partial(
            run,
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, BatchNorm),
        )
    )
    before, after = evaluate(folded, images), evaluate(unfolded, images)
    training, updated = backend.jit_once(partial(run, mutable=["batch_stats"]))(unfolded, images)
    patch.undo()
    return Unfolded(folded, unfolded, before, after, training, updated)


def test_unfold_keeps_inference_and_aligns_training_of_a_guidance(plus):
    assert is_folded(plus.folded) and not is_folded(plus.unfolded)
    before, after = plus.before[0], plus.after[0]
    assert len(before) == 2
    for was, now, trained in zip(*map(jax.tree.leaves, (before, after, plus.training))):
        scale = np.abs(was).max()
        assert np.abs(now - was).max() < 1e-4 * scale
        assert np.abs(trained - was).max() < 1e-3 * scale


def normalized(variables, captured):
    """Return the outputs of batch norms before scale and bias, by path, float64."""
    params = flatten(variables["params"])
    found = {}
    for path, (output,) in flatten(captured["intermediates"]).items():
        path = path.removesuffix("/__call__")
        bias, scale = (np.asarray(params[f"{path}/{name}"], float) for name in ("bias", "scale"))
        found[path] = (np.asarray(output, float) - bias) / scale
    return found


def test_unfolded_batch_norms_of_a_guidance_have_unit_variance(plus):
    stats = flatten(plus.unfolded["batch_stats"])
    after = normalized(plus.unfolded, plus.after[1])
    own = {path for path in after if path.startswith("neck/")}
    assert {path for path in after if path.startswith(GUIDANCE)} == {
        f"{GUIDANCE}/{path}" for path in own
    }
    assert {f"{path}/var" for path in after} == {path for path in stats if path.endswith("var")}
    updated = flatten(plus.updated["batch_stats"])
    for path, values in after.items():
        var = stats[f"{path}/var"]
        axes = (0, 1, 2)
        np.testing.assert_allclose(values.mean(axes), 0, atol=1e-3, err_msg=path)
        np.testing.assert_allclose(values.var(axes), var / (var + EPSILON), rtol=2e-3, err_msg=path)
        # Training keeps these statistics, with the unbiased variance.
        count = values[..., 0].size
        unbiased = 0.9 + 0.1 * count / (count - 1)
        np.testing.assert_allclose(updated[f"{path}/var"], unbiased * var, rtol=2e-3, err_msg=path)
        difference = updated[f"{path}/mean"] - stats[f"{path}/mean"]
        assert np.all(np.abs(difference) < 1e-3 * np.sqrt(var + EPSILON)), path
    before = normalized(plus.folded, plus.before[1])
    assert all(np.abs(values.var(axes) - 1).max() > 0.1 for values in before.values())
    # The guidance's neck is still a copy: it started as one and sees the same features.
    for collection in ("params", "batch_stats"):
        guidance = flatten(plus.unfolded[collection][GUIDANCE]["neck"])
        for path, leaf in flatten(plus.unfolded[collection]["neck"]).items():
            np.testing.assert_allclose(guidance[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)
