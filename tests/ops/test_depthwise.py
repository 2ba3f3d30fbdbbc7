"""The shifted depthwise convolution against XLA's grouped one, and both against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax.ops import depthwise
from nanodet_jax.runtime import backend

SHAPES = ((1, 1, 1), (1, 1, 7), (2, 3, 7), (5, 4, 1), (5, 4, 7), (6, 7, 7))
CASES = [(kernel, stride) for kernel in (3, 5) for stride in (1, 2)]


def inputs(size, stride, seed=0):
    """Draw image, kernel and cotangent for all SHAPES."""
    random = np.random.default_rng(seed)

    def draw(*shape):
        return random.normal(size=shape).astype(np.float32)

    return {
        (height, width, channels): (
            draw(2, height, width, channels),
            draw(size, size, 1, channels),
            draw(2, -(-height // stride), -(-width // stride), channels),
        )
        for height, width, channels in SHAPES
    }


def pulled_back(convolve, cases, stride):
    """Return output and both gradients of every case, from one compiled program."""

    @backend.jit
    def run(cases):
        results = []
        for image, kernel, cotangent in cases:
            output, vjp = jax.vjp(lambda x, k: convolve(x, k, stride=stride), image, kernel)
            results.append((output, *vjp(cotangent)))
        return results

    return run(cases)


def loop(image, kernel, stride):
    """Compute every output pixel as a sum over the pixels that its kernel covers."""
    batch, height, width, channels = image.shape
    size, pad = len(kernel), len(kernel) // 2
    output = np.zeros((batch, -(-height // stride), -(-width // stride), channels))
    for row, column in np.ndindex(output.shape[1:3]):
        for i, j in np.ndindex(size, size):
            y, x = row * stride + i - pad, column * stride + j - pad
            if 0 <= y < height and 0 <= x < width:
                output[:, row, column] += image[:, y, x].astype(np.float64) * kernel[i, j, 0]
    return output


@pytest.mark.parametrize(("size", "stride"), CASES)
def test_forms_agree_in_value_and_gradients(size, stride):
    cases = inputs(size, stride)
    shifted = pulled_back(depthwise.shifted_depthwise_conv, list(cases.values()), stride)
    grouped = pulled_back(depthwise.grouped_depthwise_conv, list(cases.values()), stride)
    for shape, (image, kernel, _), ours, theirs in zip(cases, cases.values(), shifted, grouped):
        np.testing.assert_allclose(theirs[0], loop(image, kernel, stride), atol=1e-5)
        for part, actual, expected in zip(("output", "image", "kernel"), ours, theirs):
            assert actual.dtype == jnp.float32
            np.testing.assert_allclose(actual, expected, atol=2e-5, err_msg=f"{part} of {shape}")


@pytest.mark.parametrize(("size", "stride"), CASES)
def test_depthwise_layer_uses_the_form_of_this_backend(size, stride):
    image, kernel, _ = inputs(size, stride)[(6, 7, 7)]
    module = depthwise.DepthwiseConv(size, stride)
    output = backend.jit(module.apply)({"params": {"kernel": kernel}}, image)
    np.testing.assert_allclose(output, loop(image, kernel, stride), atol=1e-5)
    lowered = backend.jit(depthwise.depthwise_conv, static_argnums=2).lower(image, kernel, stride)
    on_cpu = jax.default_backend() == "cpu"
    assert ("stablehlo.convolution" in lowered.as_text()) != on_cpu


def test_shifted_form_keeps_bfloat16():
    image, kernel, cotangent = (
        jnp.asarray(array, jnp.bfloat16) for array in inputs(3, 2)[(5, 4, 7)]
    )
    (results,) = pulled_back(depthwise.shifted_depthwise_conv, [(image, kernel, cotangent)], 2)
    (wide,) = pulled_back(
        depthwise.shifted_depthwise_conv,
        [tuple(jnp.asarray(array, jnp.float32) for array in (image, kernel, cotangent))],
        2,
    )
    for narrow, expected in zip(results, wide):
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_allclose(narrow.astype(jnp.float32), expected, atol=0.1)
