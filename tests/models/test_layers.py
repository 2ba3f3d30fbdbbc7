"""Layers against loops in numpy that follow PyTorch's conventions."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax.models.backbones.shufflenet_v2 import channel_shuffle
from nanodet_jax.models.layers import (
    BatchNorm,
    DepthwiseSeparableConv,
    downsample_2x,
    leaky_relu,
    upsample_2x,
)
from nanodet_jax.ops.max_pool import max_pool_3x3, reduce_window_max_pool, shifted_max_pool
from tests.models.plain_layers import PlainLayers, drawn

C = 3


def normal(*shape, seed=0, scale=1.0, offset=0.0):
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) * scale + offset).astype(np.float32)


def variables(seed=1):
    """Return scale, bias and running statistics that differ from their initial values."""
    random = np.random.default_rng(seed)
    params = {"scale": random.uniform(0.5, 2, C), "bias": random.normal(size=C)}
    stats = {"mean": random.normal(size=C), "var": random.uniform(0.2, 3, C)}
    every = {"params": params, "batch_stats": stats}
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), every)


def normalized(x, mean, var, params, epsilon):
    return (x - mean) / np.sqrt(var + epsilon) * params["scale"] + params["bias"]


@pytest.mark.parametrize(("momentum", "epsilon"), [(0.9, 1e-5), (0.99, 1e-3)])
def test_batch_norm_in_training_equals_numpy(momentum, epsilon):
    # One channel varies so little that epsilon matters.
    x = normal(2, 3, 5, C) * np.float32([1, 3, 0.01]) + np.float32([0.5, -2, 0])
    given = variables()
    norm = BatchNorm(use_running_average=False, momentum=momentum, epsilon=epsilon)
    output, updated = norm.apply(given, x, mutable=["batch_stats"])
    exact = x.astype(np.float64)
    mean, var = exact.mean(axis=(0, 1, 2)), exact.var(axis=(0, 1, 2))
    expected = normalized(exact, mean, var, given["params"], epsilon)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    unbiased = exact.var(axis=(0, 1, 2), ddof=1)
    for name, new in (("mean", mean), ("var", unbiased)):
        kept = momentum * given["batch_stats"][name] + (1 - momentum) * new
        np.testing.assert_allclose(updated["batch_stats"][name], kept, rtol=1e-5)


def test_batch_norm_in_inference_uses_running_statistics():
    x, given = normal(2, 3, 5, C), variables()
    output, updated = BatchNorm(use_running_average=True).apply(given, x, mutable=["batch_stats"])
    expected = normalized(x, *given["batch_stats"].values(), given["params"], 1e-5)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], given["batch_stats"])


def test_batch_norm_initialization_ignores_the_input():
    norm = BatchNorm(use_running_average=False, bias_init=nn.initializers.constant(1e-4))
    first = norm.init(jax.random.key(0), normal(2, 4, 4, C, offset=7))
    assert np.all(first["params"]["scale"] == 1) and np.all(first["batch_stats"]["var"] == 1)
    assert np.all(first["params"]["bias"] == np.float32(1e-4))
    assert not np.any(first["batch_stats"]["mean"])
    assert {leaf.dtype for leaf in jax.tree.leaves(first)} == {np.dtype(np.float32)}


def test_batch_norm_over_an_axis_equals_that_of_the_whole_batch():
    """Compare outputs, running statistics and gradients, for parts with very different means."""
    parts = normal(4, 2, 3, 5, C) + np.arange(4, dtype=np.float32)[:, None, None, None, None]
    given, weight = variables(), normal(8, 3, 5, C, seed=3)

    def scored(params, x, axis_name):
        norm = BatchNorm(use_running_average=False, axis_name=axis_name)
        apply = partial(norm.apply, given | {"params": params}, mutable=["batch_stats"])
        if axis_name is None:
            output, updated = apply(x.reshape(8, 3, 5, C))
        else:
            output, updated = jax.vmap(apply, axis_name=axis_name)(x)
            output = output.reshape(8, 3, 5, C)
        return jnp.sum(jnp.square(output) * weight), (output, updated["batch_stats"])

    gradients = jax.grad(scored, argnums=(0, 1), has_aux=True)
    whole, (expected, statistics) = gradients(given["params"], jnp.asarray(parts), None)
    split, (output, each) = gradients(given["params"], jnp.asarray(parts), "parts")
    np.testing.assert_allclose(output, expected, atol=2e-6)
    for name in ("mean", "var"):
        assert each[name].shape == (4, C)
        np.testing.assert_allclose(each[name], np.tile(statistics[name], (4, 1)), rtol=2e-6)
    for one, other in zip(jax.tree.leaves(split), jax.tree.leaves(whole)):
        np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(other).max())


def test_batch_norm_needs_the_axis_only_in_training():
    norm = BatchNorm(use_running_average=False, axis_name="parts")
    assert set(norm.init(jax.random.key(0), normal(2, 3, 5, C))) == {"params", "batch_stats"}
    x, given = normal(2, 3, 5, C), variables()
    running = BatchNorm(use_running_average=True)
    np.testing.assert_array_equal(
        running.clone(axis_name="parts").apply(given, x), running.apply(given, x)
    )


def test_batch_norm_of_a_single_pixel_equals_the_bias():
    given = variables()
    output, updated = BatchNorm(use_running_average=False).apply(
        given, normal(1, 1, 1, C), mutable=["batch_stats"]
    )
    np.testing.assert_allclose(output[0, 0, 0], given["params"]["bias"], atol=2e-5)
    np.testing.assert_allclose(
        updated["batch_stats"]["var"], 0.9 * given["batch_stats"]["var"], rtol=1e-6
    )


def test_batch_norm_of_bfloat16_has_float32_statistics():
    x = jnp.asarray(normal(4, 16, 16, C, offset=30), jnp.bfloat16)
    given = variables()
    output, updated = BatchNorm(use_running_average=False).apply(given, x, mutable=["batch_stats"])
    assert output.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    kept = 0.9 * given["batch_stats"]["mean"] + 0.1 * exact.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(updated["batch_stats"]["mean"], kept, rtol=1e-5)
    mean, var = exact.mean(axis=(0, 1, 2)), exact.var(axis=(0, 1, 2))
    expected = normalized(exact, mean, var, given["params"], 1e-5)
    np.testing.assert_allclose(output.astype(jnp.float32), expected, atol=0.05)


def max_pool_loop(x, cotangent):
    """Return the maxima of windows, and the gradient, which goes to the first maximum."""
    (batch, height, width, channels), gradient = x.shape, np.zeros_like(x)
    output = np.empty((batch, (height + 1) // 2, (width + 1) // 2, channels), np.float32)
    for n, i, j, c in np.ndindex(output.shape):
        rows = range(max(2 * i - 1, 0), min(2 * i + 2, height))
        columns = range(max(2 * j - 1, 0), min(2 * j + 2, width))
        best = max(((row, column) for row in rows for column in columns), key=lambda p: x[n, *p, c])
        output[n, i, j, c] = x[n, *best, c]
        gradient[n, *best, c] += cotangent[n, i, j, c]
    return output, gradient


@pytest.mark.parametrize("form", [shifted_max_pool, reduce_window_max_pool])
@pytest.mark.parametrize("size", [(1, 1), (4, 6), (7, 5)])
def test_max_pool_forms_equal_a_loop_in_value_and_gradient(size, form):
    # Negative values, so zero padding would be the maximum; then many equal values.
    below, ties = normal(2, *size, C, offset=-9), np.round(normal(2, *size, C))
    for x in (below, ties):
        cotangent = normal(2, (size[0] + 1) // 2, (size[1] + 1) // 2, C, seed=1)
        expected, expected_gradient = max_pool_loop(x, cotangent)
        output, vjp = jax.vjp(form, jnp.asarray(x))
        np.testing.assert_array_equal(output, expected)
        np.testing.assert_allclose(vjp(cotangent)[0], expected_gradient, atol=1e-6)
        np.testing.assert_array_equal(max_pool_3x3(jnp.asarray(x)), expected)


def half_pixel(x, axis):
    """Double an axis by linear interpolation between pixel centers, constant at the borders."""
    length = x.shape[axis]
    lines = []
    for i in range(2 * length):
        source = max((i + 0.5) / 2 - 0.5, 0)
        left = int(source)
        right, weight = min(left + 1, length - 1), source - left
        lines.append((1 - weight) * x.take(left, axis) + weight * x.take(right, axis))
    return np.stack(lines, axis)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (4, 5)])
def test_upsample_equals_half_pixel_interpolation(size):
    x = normal(2, *size, C)
    expected = half_pixel(half_pixel(x, 1), 2)
    np.testing.assert_allclose(upsample_2x(jnp.asarray(x)), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(2, 2), (4, 6)])
def test_downsample_is_the_mean_of_four_pixels(size):
    x = normal(2, *size, C)
    quarters = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    np.testing.assert_allclose(downsample_2x(jnp.asarray(x)), sum(quarters) / 4, atol=1e-6)


def test_channel_shuffle_alternates_the_halves():
    shuffled = channel_shuffle(jnp.arange(10.0))
    assert shuffled.tolist() == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    x = normal(2, 3, 4, 10)
    np.testing.assert_array_equal(
        channel_shuffle(jnp.asarray(x)), x[..., [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]]
    )


def test_leaky_relu_has_slope_one_tenth():
    np.testing.assert_allclose(leaky_relu(jnp.array([-2.0, 0.0, 3.0])), [-0.2, 0, 3], rtol=1e-6)


def test_depthwise_separable_conv_equals_numpy():
    # Depthwise, norm, activation, pointwise, norm, activation.
    x, features = normal(2, 4, 5, C), 4
    module = DepthwiseSeparableConv(features, partial(BatchNorm, use_running_average=True))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    random = np.random.default_rng(2)
    given = jax.tree.map(lambda leaf: random.uniform(0.3, 1.5, leaf.shape), shapes)
    given["params"] = jax.tree.map(lambda leaf: leaf - 0.9, given["params"])
    params, stats = given["params"], given["batch_stats"]

    def norm_and_activation(value, name):
        value = normalized(value, stats[name]["mean"], stats[name]["var"], params[name], 1e-5)
        return np.where(value > 0, value, 0.1 * value)

    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = params["depthwise"]["kernel"]
    value = sum(padded[:, i : i + 4, j : j + 5] * kernel[i, j, 0] for i, j in np.ndindex(3, 3))
    value = norm_and_activation(value, "dwnorm") @ params["pointwise"]["kernel"][0, 0]
    expected = norm_and_activation(value, "pwnorm")
    assert set(params["pointwise"]) == set(params["depthwise"]) == {"kernel"}
    given = jax.tree.map(np.float32, given)
    np.testing.assert_allclose(module.apply(given, x), expected, rtol=1e-4, atol=1e-5)


def test_separable_convolution_with_squeeze_and_excitation_equals_numpy():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = partial(BatchNorm, use_running_average=True)
            return DepthwiseSeparableConv(
                5, norm, 3, 2, nn.hard_swish, squeeze_excite=True, name="layer"
            )(x)

    x = normal(2, 5, 6, 8)
    given = drawn(jax.eval_shape(Layer().init, jax.random.key(0), x))
    assert given["params"]["layer"]["squeeze"]["reduce"]["kernel"].shape == (1, 1, 8, 2)
    expected = PlainLayers(given).separable(x, "layer", stride=2, squeeze_excite=True)
    output = jax.jit(Layer().apply)(given, x)
    np.testing.assert_allclose(output, expected, atol=1e-5 * np.abs(expected).max())
