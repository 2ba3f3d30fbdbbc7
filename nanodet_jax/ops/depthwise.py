"""Depthwise convolution, in the form each backend runs best.

XLA's CPU backend runs a grouped convolution 20 to 50 times slower than a sum of shifted slices,
and differentiates that sum slowly in turn; hence a form of our own there, with its gradients
written out. Everywhere else it is `lax.conv_general_dilated`. All forms agree to rounding.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax import lax

from nanodet_jax.runtime import backend


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolve every channel with a kernel of its own, zero-padding k // 2 on each side.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, 1, C], k odd, of the dtype of `x`.
      stride: 1 or 2.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C].
    """
    form = backend.choose(cpu=shifted_depthwise_conv, default=grouped_depthwise_conv)
    return form(x, kernel, stride)


def grouped_depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`depthwise_conv` as XLA's grouped convolution."""
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
    """`depthwise_conv` as a sum over the taps of shifted, scaled images."""
    return _shifted(x, kernel[:, :, 0, :], stride)


def _pad(x: jax.Array, margin: int) -> jax.Array:
    # The barrier keeps XLA from recomputing whatever produced x once per tap.
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return lax.optimization_barrier(padded)


def _sum_of_taps(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
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


def _shifted_fwd(x, kernel, stride):
    return _sum_of_taps(x, kernel, stride), (x, kernel)


def _shifted_bwd(stride, residuals, grad):
    x, kernel = residuals
    return _input_gradient(grad, kernel, stride, x.shape), _kernel_gradient(x, grad, kernel, stride)


_shifted.defvjp(_shifted_fwd, _shifted_bwd)


def _input_gradient(grad, kernel, stride, shape):
    if stride == 1:
        return _sum_of_taps(grad, kernel[::-1, ::-1], 1)
    # With stride 2 a pixel meets only the taps of its own parity: four images at half the
    # resolution, interleaved, instead of one full of zeros.
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
                    seen = padded[:, di : di + rows, dj : dj + columns]
                    total = total + seen * kernel[i, j][None, None, None]
            phases.append(total)
    grid = jnp.stack([jnp.stack(phases[:2], 3), jnp.stack(phases[2:], 3)], 2)
    return grid.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width]


def _kernel_gradient(x, grad, kernel, stride):
    # A scan over the taps: one small loop body to compile, and no temporary per tap.
    size, (batch, rows, columns, channels) = kernel.shape[0], grad.shape
    padded = _pad(x, size // 2)

    def tap_gradient(_, tap):
        start = (0, tap // size, tap % size, 0)
        window = (batch, stride * (rows - 1) + 1, stride * (columns - 1) + 1, channels)
        seen = lax.dynamic_slice(padded, start, window)[:, ::stride, ::stride]
        return None, jnp.sum(seen * grad, axis=(0, 1, 2))

    _, taps = lax.scan(tap_gradient, None, jnp.arange(size * size))
    return taps.reshape(kernel.shape)


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with a kernel parameter [k, k, 1, C], float32, and no bias."""

    kernel_size: int = 3
    stride: int = 1
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        return depthwise_conv(x, kernel.astype(x.dtype), self.stride)
