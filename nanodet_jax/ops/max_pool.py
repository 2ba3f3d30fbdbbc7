"""3 x 3 max pooling with stride 2, implemented so that its gradient is fast on each platform.

XLA's CPU backend scatters the gradient serially, which takes a fifth of a training step. On CPUs
this module therefore stores the position of each maximum, and gathers the gradient. Of equal
values, the first in row-major order counts as the maximum, as in PyTorch and XLA.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nanodet_jax.runtime import backend

SIZE, STRIDE, PAD = 3, 2, 1

_Residuals = tuple[jax.Array, tuple[int, ...]]


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Pool [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), C], padding with -inf by one pixel."""
    return backend.choose(cpu=shifted_max_pool, default=reduce_window_max_pool)(x)


def reduce_window_max_pool(x: jax.Array) -> jax.Array:
    """Compute `max_pool_3x3` with XLA's reduce-window."""
    return nn.max_pool(x, (SIZE, SIZE), strides=(STRIDE, STRIDE), padding=((PAD, PAD), (PAD, PAD)))


@jax.custom_vjp
def shifted_max_pool(x: jax.Array) -> jax.Array:
    """Compute `max_pool_3x3` as the maximum of nine shifted images."""
    return _max_and_argmax(x)[0]


def _max_and_argmax(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the maximum of each window, and its position 0 .. 8 in the window, uint8."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    padded = jnp.pad(x, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)), constant_values=-jnp.inf)
    padded = lax.optimization_barrier(padded)
    maximum = argmax = None
    for tap in range(SIZE * SIZE):
        i, j = divmod(tap, SIZE)
        stop = (batch, i + STRIDE * (rows - 1) + 1, j + STRIDE * (columns - 1) + 1, channels)
        value = lax.slice(padded, (0, i, j, 0), stop, (1, STRIDE, STRIDE, 1))
        if maximum is None or argmax is None:
            maximum, argmax = value, jnp.zeros(value.shape, jnp.uint8)
        else:
            argmax = jnp.where(value > maximum, jnp.uint8(tap), argmax)
            maximum = jnp.maximum(maximum, value)
    assert maximum is not None and argmax is not None
    return maximum, argmax


def _forward(x: jax.Array) -> tuple[jax.Array, _Residuals]:
    maximum, argmax = _max_and_argmax(x)
    return maximum, (argmax, x.shape[1:3])


def _backward(residuals: _Residuals, grad: jax.Array) -> tuple[jax.Array]:
    argmax, (height, width) = residuals
    batch, rows, columns, channels = grad.shape
    margin = ((0, 0), (0, 1), (0, 1), (0, 0))
    grad = lax.optimization_barrier(jnp.pad(grad, margin))
    argmax = lax.optimization_barrier(jnp.pad(argmax, margin, constant_values=SIZE * SIZE))
    # Row 2r + a of the input is tap 1 of window r if a is 0; if a is 1, it is tap 2 of window r and
    # tap 0 of window r + 1. The same holds for columns. So compute the gradient of each of the four
    # pairs of parities (a, b) at half the resolution, then interleave them.
    windows = {0: ((1, 0),), 1: ((2, 0), (0, 1))}
    phases = []
    for a in range(2):
        for b in range(2):
            total = jnp.zeros((batch, rows, columns, channels), grad.dtype)
            for i, row in windows[a]:
                for j, column in windows[b]:
                    where = (slice(None), slice(row, row + rows), slice(column, column + columns))
                    total = total + jnp.where(argmax[where] == i * SIZE + j, grad[where], 0)
            phases.append(total)
    grid = jnp.stack([jnp.stack(phases[:2], 3), jnp.stack(phases[2:], 3)], 2)
    return (grid.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width],)


shifted_max_pool.defvjp(_forward, _backward)
