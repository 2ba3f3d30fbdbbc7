"""The losses against loops over single elements, and their gradients at extreme numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax.losses import functional
from tests import oracles

LOGITS = [-50.0, -20.0, -3.0, -0.1, 0.0, 0.1, 3.0, 20.0, 50.0]
BINS = 8
# Boxes in strides: a point, lines, one pixel, inverted, far apart, extremely large.
HOSTILE = [
    [0, 0, 0, 0],
    [2, 2, 2, 5],
    [2, 2, 5, 2],
    [2, 2, 2.125, 2.125],
    [5, 5, 2, 2],
    [2, 2, 5, 5],
    [900, 900, 901, 901],
    [-1e4, -1e4, 1e4, 1e4],
]


def slope(function, at, epsilon=1e-4):
    """Derivative of a function of one Python float."""
    return (function(at + epsilon) - function(at - epsilon)) / (2 * epsilon)


def quality_cases():
    random = np.random.default_rng(0)
    edges = np.stack(np.meshgrid(LOGITS, [0.0, 0.01, 0.5, 1.0]), axis=-1).reshape(-1, 2)
    inside = np.stack([random.uniform(-8, 8, 60), random.uniform(0, 1, 60)], axis=-1)
    return np.concatenate([edges, inside]).astype(np.float32).T


def distance_cases():
    """Logits [n, R] and targets [n]: on integers, the ends included, and between them."""
    random = np.random.default_rng(1)
    on_bins = np.arange(BINS, dtype=np.float64)
    targets = np.concatenate([on_bins, [6.9, 0.001, 3.5], random.uniform(0, BINS - 1, 40)])
    return random.normal(0, 3, (len(targets), BINS)).astype(np.float32), targets.astype(np.float32)


def test_quality_focal_matches_the_loop():
    logits, quality = quality_cases()
    expected = [oracles.quality_focal(*pair) for pair in zip(logits.tolist(), quality.tolist())]
    actual = functional.quality_focal(jnp.asarray(logits), jnp.asarray(quality))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)


def test_quality_focal_gradient_matches_differences():
    logits, quality = quality_cases()
    gradient = jax.grad(lambda z: jnp.sum(functional.quality_focal(z, jnp.asarray(quality))))(
        logits
    )
    expected = [
        slope(lambda z, q=q: oracles.quality_focal(z, q), z)
        for z, q in zip(logits.tolist(), quality.tolist())
    ]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_quality_focal_is_zero_only_where_score_and_quality_agree():
    quality = jnp.linspace(0.05, 0.95, 19)
    logits = jnp.log(quality) - jnp.log1p(-quality)
    np.testing.assert_allclose(functional.quality_focal(logits, quality), 0, atol=1e-12)
    for off in (-0.5, 0.5):
        assert jnp.all(functional.quality_focal(logits + off, quality) > 1e-5)


def test_distribution_focal_matches_the_loop():
    logits, targets = distance_cases()
    expected = [oracles.distribution_focal(*c) for c in zip(logits.tolist(), targets.tolist())]
    actual = functional.distribution_focal(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)
    # With leading axes, the result equals a loop over them.
    grid = functional.distribution_focal(
        jnp.asarray(logits[:48].reshape(4, 3, 4, BINS)), jnp.asarray(targets[:48].reshape(4, 3, 4))
    )
    np.testing.assert_allclose(grid.reshape(-1), actual[:48], rtol=1e-6)


def test_distribution_focal_gradient_is_the_difference_of_distributions():
    logits, targets = distance_cases()
    gradient = jax.grad(lambda z: jnp.sum(functional.distribution_focal(z, jnp.asarray(targets))))(
        jnp.asarray(logits)
    )
    expected = np.exp(logits.astype(np.float64))
    expected /= expected.sum(axis=1, keepdims=True)
    for row, target in zip(expected, targets.astype(np.float64)):
        left = min(int(target), BINS - 2)
        row[left] -= left + 1 - target
        row[left + 1] -= target - left
    np.testing.assert_allclose(gradient, expected, atol=2e-6)


def test_giou_loss_matches_the_loop():
    random = np.random.default_rng(2)
    low = random.uniform(-2, 40, (20, 2))
    every = np.concatenate(
        [HOSTILE, np.concatenate([low, low + random.uniform(0, 12, (20, 2))], axis=1)]
    ).astype(np.float32)
    actual = functional.giou_loss(jnp.asarray(every)[:, None], jnp.asarray(every)[None])
    ordered = [i for i in range(len(every)) if i != 4]  # the loop does not support inverted boxes
    for i in ordered:
        expected = [1 - oracles.giou(every[i], every[j]) for j in ordered]
        np.testing.assert_allclose(actual[i, np.array(ordered)], expected, rtol=1e-4, atol=1e-5)
    assert jnp.all(jnp.isfinite(actual))


def finite(function, *arguments):
    """Gradients of the sum of `function`, checked to be finite."""
    every = tuple(range(len(arguments)))
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(function(*a)), every))(*arguments)
    for gradient in gradients:
        assert jnp.all(jnp.isfinite(gradient))
    return gradients


def test_gradients_of_extreme_numbers_are_finite():
    logits, quality = np.float32(np.meshgrid(LOGITS, [0.0, 0.5, 1.0]))
    finite(functional.quality_focal, jnp.asarray(logits), jnp.asarray(quality))

    spikes = np.float32([*(50 * np.eye(BINS)), *(-50 * np.eye(BINS)), np.zeros(BINS)])
    targets = np.float32([*range(BINS), 0.5, 3.25, 6.9])
    logits = np.broadcast_to(spikes[:, None], (len(spikes), len(targets), BINS))
    targets = np.broadcast_to(targets, (len(spikes), len(targets)))
    finite(functional.distribution_focal, jnp.asarray(logits), jnp.asarray(targets))

    every = jnp.asarray(HOSTILE, jnp.float32)
    finite(functional.giou_loss, every[:, None], every[None])


def test_loss_of_a_confident_error_is_its_logit():
    # No saturation: at a logit of 50 in the wrong direction the loss is 50, and its slope 1.
    assert float(functional.quality_focal(jnp.float32(50), jnp.float32(0))) == pytest.approx(50)
    assert float(functional.quality_focal(jnp.float32(-50), jnp.float32(1))) == pytest.approx(50)
    slope_of = jax.grad(functional.quality_focal)
    assert float(slope_of(jnp.float32(50), jnp.float32(0))) == pytest.approx(1)
    assert float(slope_of(jnp.float32(-50), jnp.float32(1))) == pytest.approx(-1)
    wrong = jnp.where(jnp.arange(BINS) == 0, 50.0, 0.0)
    assert float(functional.distribution_focal(wrong, jnp.float32(4))) == pytest.approx(50)
