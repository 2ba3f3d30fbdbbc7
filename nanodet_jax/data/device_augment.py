"""Augmentation on the device: the pixel transforms of `data.transforms`, in JAX.

A canvas has the size Hc, Wc, and the input has the size H, W; both are static. Sizes in arrays are
(height, width), int32, and may be traced.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from nanodet_jax.runtime import backend
from nanodet_jax.structures import RawBatch

FLT_EPSILON = 1.1920929e-07  # OpenCV adds it to the divisor when it computes HSV
CHUNK = 32  # images warped together, to limit memory; 1 on a CPU, to fit in its cache


def warp_batch(
    raw: RawBatch,
    stored: jax.Array | None = None,
    *,
    input_size: tuple[int, int],
    shrinks: bool,
) -> jax.Array:
    """Warp images as `transforms.warp_image` does. This is the first of two compiled programs.

    Args:
      raw: B images.
      stored: [N, Hc, Wc, 3] uint8, canvases of all images; needed if `raw` contains indices.
      input_size: H, W.
      shrinks: whether `raw.shrunk` may differ from `raw.sizes`; False omits the averaging.

    Returns:
      [B, H, W, 3] uint8 BGR.
    """
    taps = jnp.max(-(-raw.sizes // raw.shrunk)) + 1  # one number, because all images share a loop

    def warp_one(images: tuple[jax.Array, ...]) -> jax.Array:
        canvas, size, shrunk, inverse = images
        if stored is not None:
            canvas = stored[canvas]
        if shrinks:
            canvas, size = shrink(canvas, size, shrunk, taps), shrunk
        return warp(canvas, size, inverse, input_size)

    chunk = math.gcd(len(raw.sizes), backend.choose(cpu=1, default=CHUNK))
    images = raw.canvases, raw.sizes, raw.shrunk, raw.inverse_warps
    return lax.map(warp_one, images, batch_size=chunk)


def color_batch(
    pixels: jax.Array,
    filled: jax.Array,
    colors: jax.Array,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> jax.Array:
    """Transform the colors of warped images, and normalize them. This is the second program.

    It is separate because XLA on a CPU would otherwise repeat the warp for each use of a pixel.

    Args:
      pixels: [B, H, W, 3] uint8 BGR.
      filled, colors: as in `RawBatch`.
      mean, std: of blue, green and red, for pixel values from 0 to 255.

    Returns:
      [B, H, W, 3] float32, 0 outside the filled part.
    """
    center, scale = (jnp.asarray(values).reshape(1, 1, 3) / 255 for values in (mean, std))

    def color_one(image: jax.Array, filled: jax.Array, factors: jax.Array) -> jax.Array:
        normalized = (color(image.astype(jnp.float32) / 255, factors) - center) / scale
        rows, columns = (jnp.arange(side) < end for side, end in zip(image.shape, filled))
        return jnp.where((rows[:, None] & columns[None])[..., None], normalized, 0.0)

    return jax.vmap(color_one)(pixels, filled, colors)


def warp(
    image: jax.Array, size: jax.Array, inverse: jax.Array, output_size: tuple[int, int]
) -> jax.Array:
    """Warp image[:size[0], :size[1]] like `cv2.warpPerspective`: bilinear, black outside.

    Args:
      image: [Hc, Wc, 3] uint8 canvas.
      size: size of the image on the canvas.
      inverse: [3, 3] float32, from pixel indices of the output to pixel indices of the image.
      output_size: H, W.

    Returns:
      [H, W, 3] uint8, rounded.
    """
    height, width = output_size
    x = jnp.arange(width, dtype=jnp.float32)[None]
    y = jnp.arange(height, dtype=jnp.float32)[:, None]
    # Written out because a matrix product may be less precise than float32.
    u, v, w = (row[0] * x + row[1] * y + row[2] for row in inverse)
    u, v = u / w, v / w  # nan and inf are outside the image
    left, top = jnp.floor(u), jnp.floor(v)
    right_weight, lower_weight = u - left, v - top

    rows, columns = image.shape[:2]
    bottom, right = size.astype(jnp.float32)
    pixels = image.reshape(rows * columns, 3)
    mixed = jnp.zeros((height, width, 3), jnp.float32)
    for down, weight_y in ((0, 1 - lower_weight), (1, lower_weight)):
        for across, weight_x in ((0, 1 - right_weight), (1, right_weight)):
            row, column = top + down, left + across
            inside = (row >= 0) & (row < bottom) & (column >= 0) & (column < right)
            weight = jnp.where(inside, weight_x * weight_y, 0.0)
            # Gather all three channels together, which is three times as fast.
            row, column = (jnp.where(inside, x, 0.0).astype(jnp.int32) for x in (row, column))
            index = row * columns + column
            mixed += weight[..., None] * pixels[index].astype(jnp.float32)
    return jnp.round(mixed).astype(jnp.uint8)


def shrink(image: jax.Array, size: jax.Array, new_size: jax.Array, taps: jax.Array) -> jax.Array:
    """Shrink an image by averaging the area under each output pixel, like `cv2.INTER_AREA`.

    Args:
      image: [Hc, Wc, 3] uint8 canvas.
      size: size of the image on the canvas.
      new_size: size of the result, at most `size`.
      taps: int32, at least 1 + size / new_size; an output pixel overlaps at most this many pixels
        along an axis.

    Returns:
      [Hc, Wc, 3] uint8, of which [:new_size[0], :new_size[1]] is the result.
    """
    rows, columns = image.shape[:2]
    lower = _shrink_rows(image.reshape(rows, columns * 3), size[0], new_size[0], taps)
    transposed = lower.reshape(rows, columns, 3).swapaxes(0, 1).reshape(columns, rows * 3)
    narrower = _shrink_rows(transposed, size[1], new_size[1], taps)
    return jnp.round(narrower).astype(jnp.uint8).reshape(columns, rows, 3).swapaxes(0, 1)


def _shrink_rows(
    image: jax.Array, size: jax.Array, new_size: jax.Array, taps: jax.Array
) -> jax.Array:
    """Average the first `size` rows of an image [n, m] down to `new_size` rows.

    The result is [n, m] float32, of which the first `new_size` rows are valid. Multiplying
    by a weight matrix, which is nearly all zeros, would take ten times as long.
    """
    count = len(image)
    factor = size / new_size
    start = jnp.arange(count, dtype=jnp.float32) * factor
    first = jnp.floor(start)

    def add(tap: jax.Array, total: jax.Array) -> jax.Array:
        row = first + tap.astype(jnp.float32)
        overlap = jnp.minimum(start + factor, row + 1) - jnp.maximum(start, row)
        weight = jnp.maximum(overlap, 0.0) / factor
        taken = image[jnp.minimum(row, count - 1).astype(jnp.int32)]
        return total + weight[:, None] * taken.astype(jnp.float32)

    return lax.fori_loop(0, taps, add, jnp.zeros(image.shape, jnp.float32))


def color(pixels: jax.Array, factors: jax.Array) -> jax.Array:
    """Adjust brightness, contrast and saturation of pixels [..., 3] in [0, 1], without clipping.

    Equivalent to `data.transforms.color_image`. The saturation factor scales the distance of each
    channel to the largest one. As in the conversion to HSV, the distance changes its sign where
    the largest channel is negative.
    """
    brightness, contrast, saturation = factors
    pixels = (pixels + brightness) * contrast
    value = jnp.max(pixels, axis=-1, keepdims=True)
    sign = value / (jnp.abs(value) + FLT_EPSILON)
    saturated = value - saturation * sign * (value - pixels)
    return jnp.where(saturation == 1, pixels, saturated)
