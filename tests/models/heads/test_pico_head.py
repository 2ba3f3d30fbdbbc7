"""PicoHead against an implementation in numpy, and the logit of a mean of probabilities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nanodet_jax.io.torch_names import flatten
from nanodet_jax.models.heads.pico_head import PicoHead, mean_logits
from nanodet_jax.models.layers import BatchNorm
from nanodet_jax.runtime import backend
from tests.models.plain_layers import PlainLayers, drawn, hard_swish, sigmoid

CHANNELS, CLASSES, BINS = 6, 3, 5
SIZES = ((6, 8), (3, 4))


def plain_scores_and_boxes(layers, x, level):
    """Return scores [B, H * W, C] and box logits [B, H * W, 4, R] of one level."""
    for i in range(2):
        x = layers.separable(x, f"cls_tower_{level}_{i}")
    mean = x.mean(axis=(1, 2), keepdims=True)
    gated = x * sigmoid(layers.pointwise(mean, f"excite_{level}/gate", bias=True))
    gated = layers.pointwise(gated, f"excite_{level}_conv/conv")
    gated = hard_swish(layers.norm(gated, f"excite_{level}_conv/norm"))
    classes = sigmoid(layers.pointwise(gated, f"cls_output_{level}", bias=True))
    boxes = layers.pointwise(gated, f"reg_output_{level}", bias=True)
    shared = layers.dense(x, f"align_{level}_0/conv")
    shared = hard_swish(layers.norm(shared, f"align_{level}_0/norm"))
    shared = layers.pointwise(shared, f"align_{level}_1/conv")
    shared = sigmoid(layers.norm(shared, f"align_{level}_1/norm"))
    return (
        np.sqrt(classes * shared).reshape(2, -1, CLASSES),
        boxes.reshape(2, -1, 4, BINS),
    )


def test_forward_equals_numpy():
    random = np.random.default_rng(0)
    features = [random.normal(size=(2, *size, CHANNELS)).astype(np.float32) for size in SIZES]
    norm = partial(BatchNorm, use_running_average=True)
    head = PicoHead(CLASSES, CHANNELS, 5, 2, BINS - 1, nn.hard_swish, norm)
    variables = drawn(jax.eval_shape(head.init, jax.random.key(0), features))
    predictions = backend.jit_once(head.apply)(variables, features)
    plain = PlainLayers(variables)
    levels = [plain_scores_and_boxes(plain, x, level) for level, x in enumerate(features)]
    assert plain.read == set(flatten(variables))  # all variables are used
    scores, boxes = (np.concatenate(parts, axis=1) for parts in zip(*levels))
    assert scores.std() > 0.05 and boxes.std() > 0.1
    found = sigmoid(np.asarray(predictions.class_logits, np.float64))
    np.testing.assert_allclose(found, scores, rtol=1e-5)
    np.testing.assert_allclose(predictions.box_logits, boxes, atol=1e-5 * np.abs(boxes).max())


def test_mean_logits_equals_the_formula_in_float64():
    first, second = np.meshgrid([-90.0, -5, -0.1, 0, 3, 20, 60], [-40.0, -1, 0, 2, 30])
    # 1 - p q is written without cancellation; exp(-90) is far from the limits of float64.
    p, q = sigmoid(first), sigmoid(second)
    rest = sigmoid(-first) + p * sigmoid(-second)
    score = np.sqrt(p * q)
    expected = np.log(score) + np.log1p(score) - np.log(rest)
    found = mean_logits(first.astype(np.float32), second.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_mean_logits_of_extreme_logits_has_finite_gradients():
    extreme = jnp.asarray([-1e4, -200.0, 200.0, 1e4])
    pairs = jnp.stack(jnp.meshgrid(extreme, extreme), -1).reshape(-1, 2)
    values = mean_logits(pairs[:, 0], pairs[:, 1])
    gradients = jax.grad(lambda pairs: mean_logits(pairs[:, 0], pairs[:, 1]).sum())(pairs)
    assert jnp.all(jnp.isfinite(values)) and jnp.all(jnp.isfinite(gradients))
    np.testing.assert_allclose(values[0], -1e4, rtol=1e-6)
    np.testing.assert_allclose(gradients[0], [0.5, 0.5], rtol=1e-6)
