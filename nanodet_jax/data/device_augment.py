"""Pixels of a training batch made on the device: what `data.transforms` does with OpenCV.

Written for one image. Letters: Hc, Wc the canvas, H, W the input. Sizes are (height, width), int32,
and may be traced; shapes are static.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from nanodet_jax.runtime import backend
from nanodet_jax.structures import RawBatch

FLT_EPSILON = 1.1920929e-07  # what OpenCV adds to a divisor
CHUNK = 32  # images warped at once, to bound the memory for it; on a CPU one, which stays in cache


def warp_batch(
    raw: RawBatch,
    stored: jax.Array | None = None,
    *,
    input_size: tuple[int, int],
    shrinks: bool,
) -> jax.Array:
    """Images warped as `transforms.warp_image` does, the first of two programs.

    Args:
      raw: B images.
      stored: [N, Hc, Wc, 3] uint8, canvases of all images, if `raw` has their places instead.
      input_size: H, W.
      shrinks: whether `raw.shrunk` may differ from `raw.sizes`; if not, that part is left out.

    Returns:
      [B, H, W, 3] uint8 BGR.
    """
    taps = jnp.max(-(-raw.sizes // raw.shrunk)) + 1  # of all, so that no image loops by itself

    def one(images) -> jax.Array:
        canvas, size, shrunk, inverse = images
        if stored is not None:
            canvas = stored[canvas]
        if shrinks:
            canvas, size = shrink(canvas, size, shrunk, taps), shrunk
        return warp(canvas, size, inverse, input_size)

    chunk = math.gcd(len(raw.sizes), backend.choose(cpu=1, default=CHUNK))
    images = raw.canvases, raw.sizes, raw.shrunk, raw.inverse_warps
    return lax.map(one, images, batch_size=chunk)


def color_batch(
    pixels: jax.Array,
    filled: jax.Array,
    colors: jax.Array,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> jax.Array:
    """Warped images in their colours and normalised, the second program.

    One of its own, since XLA on a CPU would otherwise warp anew for each use of a pixel.

    Args:
      pixels: [B, H, W, 3] uint8 BGR.
      filled, colors: of a `RawBatch`.
      mean, std: of blue, green, red, in 0 .. 255.

    Returns:
      [B, H, W, 3] float32, 0 outside what is filled.
    """
    center, scale = (jnp.asarray(values).reshape(1, 1, 3) / 255 for values in (mean, std))

    def one(image, filled, factors):
        normalized = (color(image.astype(jnp.float32) / 255, factors) - center) / scale
        rows, columns = (jnp.arange(side) < end for side, end in zip(image.shape, filled))
        return jnp.where((rows[:, None] & columns[None])[..., None], normalized, 0.0)

    return jax.vmap(one)(pixels, filled, colors)


def warp(
    image: jax.Array, size: jax.Array, inverse: jax.Array, output_size: tuple[int, int]
) -> jax.Array:
    """Bilinear, black outside: `cv2.warpPerspective` of image[:size[0], :size[1]].

    Args:
      image: [Hc, Wc, 3] uint8.
      size: of the part that is the image.
      inverse: [3, 3] float32, pixel indices of the output to those of the image.
      output_size: H, W.

    Returns:
      [H, W, 3] uint8, rounded.
    """
    height, width = output_size
    x = jnp.arange(width, dtype=jnp.float32)[None]
    y = jnp.arange(height, dtype=jnp.float32)[:, None]
    # Written out, since a product of matrices may be taken in less than float32.
    u, v, w = (row[0] * x + row[1] * y + row[2] for row in inverse)
    u, v = u / w, v / w  # not a number, or infinite, is not inside either
    left, top = jnp.floor(u), jnp.floor(v)
    right_share, lower_share = u - left, v - top

    rows, columns = image.shape[:2]
    bottom, right = size.astype(jnp.float32)
    pixels = image.reshape(rows * columns, 3)
    mixed = jnp.zeros((height, width, 3), jnp.float32)
    for down, share_y in ((0, 1 - lower_share), (1, lower_share)):
        for across, share_x in ((0, 1 - right_share), (1, right_share)):
            row, column = top + down, left + across
            inside = (row >= 0) & (row < bottom) & (column >= 0) & (column < right)
            share = jnp.where(inside, share_x * share_y, 0.0)
            # Three bytes at a place: gathered one by one they would take as many times longer.
            row, column = (jnp.where(inside, x, 0.0).astype(jnp.int32) for x in (row, column))
            place = row * columns + column
            mixed += share[..., None] * pixels[place].astype(jnp.float32)
    return jnp.round(mixed).astype(jnp.uint8)


def shrink(image: jax.Array, size: jax.Array, shrunk: jax.Array, taps: jax.Array) -> jax.Array:
    """Means over the squares that become one pixel: `cv2.INTER_AREA` where nothing grows.

    Args:
      image: [Hc, Wc, 3] uint8.
      size: of the part that is the image.
      shrunk: what it becomes, at most `size`.
      taps: int32, at least 1 + size / shrunk: the most pixels, along an axis, with a share in one.

    Returns:
      [Hc, Wc, 3] uint8, of which [:shrunk[0], :shrunk[1]] is the image.
    """
    rows, columns = image.shape[:2]
    lower = _shrink_rows(image.reshape(rows, columns * 3), size[0], shrunk[0], taps)
    turned = lower.reshape(rows, columns, 3).swapaxes(0, 1).reshape(columns, rows * 3)
    narrower = _shrink_rows(turned, size[1], shrunk[1], taps)
    return jnp.round(narrower).astype(jnp.uint8).reshape(columns, rows, 3).swapaxes(0, 1)


def _shrink_rows(image: jax.Array, size: jax.Array, shrunk: jax.Array, taps: jax.Array):
    """Rows [n, m] averaged, `size` to `shrunk` of them: [n, m] float32.

    As a product with a matrix of weights, nearly all of them 0, it takes ten times as long.
    """
    count = len(image)
    factor = size / shrunk
    start = jnp.arange(count, dtype=jnp.float32) * factor
    first = jnp.floor(start)

    def add(tap, total):
        row = first + tap.astype(jnp.float32)
        overlap = jnp.minimum(start + factor, row + 1) - jnp.maximum(start, row)
        share = jnp.maximum(overlap, 0.0) / factor
        taken = image[jnp.minimum(row, count - 1).astype(jnp.int32)]
        return total + share[:, None] * taken.astype(jnp.float32)

    return lax.fori_loop(0, taps, add, jnp.zeros(image.shape, jnp.float32))


def color(pixels: jax.Array, factors: jax.Array) -> jax.Array:
    """`data.transforms.color_image` of pixels [..., 3] in [0, 1] by factors [3]; without clipping.

    A factor of saturation scales the distance of each channel to the largest, as the way over HSV
    does. Where the largest is negative that way takes its distance with the other sign.
    """
    brightness, contrast, saturation = factors
    pixels = (pixels + brightness) * contrast
    value = jnp.max(pixels, axis=-1, keepdims=True)
    sign = value / (jnp.abs(value) + FLT_EPSILON)
    saturated = value - saturation * sign * (value - pixels)
    return jnp.where(saturation == 1, pixels, saturated)
