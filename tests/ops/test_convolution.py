"""Convolution as a matrix product against XLA's convolution, and both against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax.ops import convolution
from nanodet_jax.runtime import backend

SHAPES = ((1, 1, 1, 1), (1, 5, 3, 7), (4, 3, 8, 2))  # height, width, channels in and out


def inputs(shape, size=1, stride=1, seed=0):
    """Draw image, kernel and cotangent."""
    height, width, channels, features = shape
    random = np.random.default_rng(seed)
    return [
        random.normal(size=size).astype(np.float32)
        for size in (
            (2, height, width, channels),
            (size, size, channels, features),
            (2, -(-height // stride), -(-width // stride), features),
        )
    ]


def pulled_back(convolve, image, kernel, cotangent):
    """Return the output and both gradients."""

    @backend.jit
    def run(image, kernel, cotangent):
        output, pull_back = jax.vjp(convolve, image, kernel)
        return output, *pull_back(cotangent)

    return run(image, kernel, cotangent)


@pytest.mark.parametrize("shape", SHAPES)
def test_forms_agree_in_value_and_gradients(shape):
    image, kernel, cotangent = inputs(shape)
    ours = pulled_back(convolution.matmul_conv, image, kernel, cotangent)
    xlas = pulled_back(convolution.xla_conv, image, kernel, cotangent)
    matrix = kernel[0, 0].astype(np.float64)
    expected = (
        np.einsum("bhwc,cd->bhwd", image, matrix),
        np.einsum("bhwd,cd->bhwc", cotangent, matrix),
        np.einsum("bhwc,bhwd->cd", image.astype(np.float64), cotangent)[None, None],
    )
    for part, truth, a, b in zip(("output", "image", "kernel"), expected, ours, xlas):
        assert a.shape == b.shape == truth.shape
        np.testing.assert_allclose(a, truth, atol=2e-6 * np.abs(truth).max(), err_msg=part)
        np.testing.assert_allclose(b, truth, atol=2e-6 * np.abs(truth).max(), err_msg=part)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (1, 2), (5, 1)])
def test_conv_equals_a_loop_over_centered_windows(size, stride):
    image, kernel, cotangent = inputs((5, 4, 3, 2), size, stride)
    output = backend.jit(convolution.conv, static_argnums=2)(image, kernel, stride)
    padded = np.pad(image, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    expected = np.zeros(cotangent.shape)
    for row, column in np.ndindex(expected.shape[1:3]):
        y, x = row * stride, column * stride
        window = padded[:, y : y + size, x : x + size].astype(np.float64)
        expected[:, row, column] = np.einsum("bijc,ijcd->bd", window, kernel)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_gpu_uses_the_xla_convolution(monkeypatch):
    image, kernel, _ = inputs((4, 3, 8, 2))

    def uses_xla_conv() -> bool:
        jaxpr = jax.make_jaxpr(lambda *args: convolution.conv(*args))(image, kernel)
        return "conv_general_dilated" in str(jaxpr)

    assert not uses_xla_conv()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert uses_xla_conv()
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # despite the GPU
        assert not uses_xla_conv()


@pytest.mark.parametrize("use_bias", [True, False])
def test_conv_layer_computes_in_the_dtype_of_its_input(use_bias):
    image, kernel, _ = inputs((4, 3, 8, 2))
    module = convolution.Conv(2, use_bias=use_bias)
    variables = module.init(jax.random.key(0), image)
    assert set(variables["params"]) == ({"kernel", "bias"} if use_bias else {"kernel"})
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    params = {"kernel": kernel} | ({"bias": np.array([1, -2], np.float32)} if use_bias else {})
    wide = module.apply({"params": params}, image)
    narrow = module.apply({"params": params}, image.astype(jnp.bfloat16))
    expected = np.einsum("bhwc,cd->bhwd", image, kernel[0, 0]) + params.get("bias", 0)
    assert (wide.dtype, narrow.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(wide, expected, atol=1e-5)
    np.testing.assert_allclose(narrow.astype(np.float32), expected, atol=0.1)
    assert np.any(narrow.astype(np.float32) != wide)
