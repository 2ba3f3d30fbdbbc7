"""Depthwise convolution, implemented so that it is fast on each platform.

XLA's CPU backend runs a grouped convolution 20 to 50 times slower than a sum of shifted slices. The
automatic gradient of that sum is slow too. On CPUs this module therefore sums shifted slices and
defines the gradients itself. Elsewhere it uses `lax.conv_general_dilated`. The results agree up to
rounding.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax import lax

from nanodet_jax.runtime import backend

_Residuals = tuple[jax.Array, jax.Array]


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolve every channel with a separate kernel and zero padding of k // 2 on each side.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, 1, C], k odd, of the dtype of `x`.
      stride: 1 or 2.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C], of the dtype of `x`.
    """
    form = backend.choose(cpu=shifted_depthwise_conv, default=grouped_depthwise_conv)
    return form(x, kernel, stride)


def grouped_depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Compute `depthwise_conv` as XLA's grouped convolution."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def shifted_depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Compute `depthwise_conv` as a sum of shifted, scaled images: one for each kernel tap."""
    return _shifted(x, kernel[:, :, 0, :], stride)


def _pad(x: jax.Array, margin: int) -> jax.Array:
    # The barrier keeps XLA from recomputing the producer of x for every tap.
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return lax.optimization_barrier(padded)


def _sum_of_taps(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve x [B, H, W, C] with kernel [k, k, C]."""
    size, (batch, height, width, channels) = kernel.shape[0], x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = _pad(x, size // 2)
    total = jnp.zeros((), x.dtype)
    for i in range(size):
        for j in range(size):
            tap = lax.slice(
                padded,
                (0, i, j, 0),
                (batch, i + stride * (rows - 1) + 1, j + stride * (columns - 1) + 1, channels),
                (1, stride, stride, 1),
            )
            total = total + tap * kernel[i, j][None, None, None]
    return total


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return _sum_of_taps(x, kernel, stride)


def _shifted_fwd(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, _Residuals]:
    return _sum_of_taps(x, kernel, stride), (x, kernel)


def _shifted_bwd(
    stride: int, residuals: _Residuals, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return _input_gradient(grad, kernel, stride, x.shape), _kernel_gradient(x, grad, kernel, stride)


_shifted.defvjp(_shifted_fwd, _shifted_bwd)


def _input_gradient(
    grad: jax.Array, kernel: jax.Array, stride: int, shape: tuple[int, ...]
) -> jax.Array:
    """Return the gradient of the input, of `shape`: a correlation of `grad` with the kernel."""
    if stride == 1:
        return _sum_of_taps(grad, kernel[::-1, ::-1], 1)
    # With stride 2, input pixel 2r + a contributes through the taps of one parity only. Compute the
    # gradient for each of the four pairs of parities (row, column) at half the resolution, then
    # interleave them. A transposed convolution would multiply mostly zeros.
    size, (batch, height, width, channels) = kernel.shape[0], shape
    pad, margin = size // 2, (size + 1) // 2
    rows, columns = -(-height // 2), -(-width // 2)
    padded = _pad(grad, margin)
    phases = []
    for row_parity in range(2):
        for column_parity in range(2):
            total = jnp.zeros((batch, rows, columns, channels), grad.dtype)
            for i in range((row_parity + pad) % 2, size, 2):
                for j in range((column_parity + pad) % 2, size, 2):
                    di = margin + (row_parity + pad - i) // 2
                    dj = margin + (column_parity + pad - j) // 2
                    shifted = padded[:, di : di + rows, dj : dj + columns]
                    total = total + shifted * kernel[i, j][None, None, None]
            phases.append(total)
    grid = jnp.stack([jnp.stack(phases[:2], 3), jnp.stack(phases[2:], 3)], 2)
    return grid.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width]


def _kernel_gradient(x: jax.Array, grad: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return the gradient of the kernel, [k, k, C]."""
    # Scan over the taps: this compiles one small loop body, without a temporary for each tap.
    size, (batch, rows, columns, channels) = kernel.shape[0], grad.shape
    padded = _pad(x, size // 2)

    def tap_gradient(_: None, tap: jax.Array) -> tuple[None, jax.Array]:
        start = (0, tap // size, tap % size, 0)
        window = (batch, stride * (rows - 1) + 1, stride * (columns - 1) + 1, channels)
        shifted = lax.dynamic_slice(padded, start, window)[:, ::stride, ::stride]
        return None, jnp.sum(shifted * grad, axis=(0, 1, 2))

    _, taps = lax.scan(tap_gradient, None, jnp.arange(size * size))
    return taps.reshape(kernel.shape)


class DepthwiseConv(nn.Module):
    """Layer that applies `depthwise_conv`. The only parameter is `kernel` [k, k, 1, C], float32.

    The output has the dtype of the input.
    """

    kernel_size: int = 3
    stride: int = 1
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        return depthwise_conv(x, kernel.astype(x.dtype), self.stride)
