"""Maximum over 3 x 3 with stride 2, in the form each backend differentiates best.

XLA's CPU backend scatters the gradient serially: a fifth of a training step. The form here
remembers which tap won and gathers. Of equal values the first in reading order wins, as in
PyTorch and in XLA's own form.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nanodet_jax.runtime import backend

SIZE, STRIDE, PAD = 3, 2, 1


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """[B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), C]; one pixel of padding that never wins."""
    return backend.choose(cpu=shifted_max_pool, default=windowed_max_pool)(x)


def windowed_max_pool(x: jax.Array) -> jax.Array:
    """`max_pool_3x3` as XLA's reduce-window."""
    return nn.max_pool(x, (SIZE, SIZE), strides=(STRIDE, STRIDE), padding=((PAD, PAD), (PAD, PAD)))


@jax.custom_vjp
def shifted_max_pool(x: jax.Array) -> jax.Array:
    """`max_pool_3x3` as the maximum of shifted images."""
    return _best(x)[0]


def _best(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window, and the tap 0 .. 8 that it comes from, uint8."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    padded = jnp.pad(x, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)), constant_values=-jnp.inf)
    padded = lax.optimization_barrier(padded)
    best = winner = None
    for tap in range(SIZE * SIZE):
        i, j = divmod(tap, SIZE)
        stop = (batch, i + STRIDE * (rows - 1) + 1, j + STRIDE * (columns - 1) + 1, channels)
        value = lax.slice(padded, (0, i, j, 0), stop, (1, STRIDE, STRIDE, 1))
        if best is None or winner is None:
            best, winner = value, jnp.zeros(value.shape, jnp.uint8)
        else:
            winner = jnp.where(value > best, jnp.uint8(tap), winner)
            best = jnp.maximum(best, value)
    assert best is not None and winner is not None
    return best, winner


def _forward(x):
    best, winner = _best(x)
    return best, (winner, x.shape[1:3])


def _backward(residuals, grad):
    winner, (height, width) = residuals
    batch, rows, columns, channels = grad.shape
    margin = ((0, 0), (0, 1), (0, 1), (0, 0))
    grad = lax.optimization_barrier(jnp.pad(grad, margin))
    winner = lax.optimization_barrier(jnp.pad(winner, margin, constant_values=SIZE * SIZE))
    # Pixel (2r + a, 2c + b) is tap 1 of window r if a is 0; if a is 1, tap 2 of window r and
    # tap 0 of window r + 1. Columns alike: four images at half the resolution, interleaved.
    windows = {0: ((1, 0),), 1: ((2, 0), (0, 1))}
    phases = []
    for a in range(2):
        for b in range(2):
            total = jnp.zeros((batch, rows, columns, channels), grad.dtype)
            for i, row in windows[a]:
                for j, column in windows[b]:
                    where = (slice(None), slice(row, row + rows), slice(column, column + columns))
                    total = total + jnp.where(winner[where] == i * SIZE + j, grad[where], 0)
            phases.append(total)
    grid = jnp.stack([jnp.stack(phases[:2], 3), jnp.stack(phases[2:], 3)], 2)
    return (grid.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width],)


shifted_max_pool.defvjp(_forward, _backward)
