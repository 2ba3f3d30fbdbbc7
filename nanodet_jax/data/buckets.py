"""Input sizes that follow the image, as in mmdetection: the shorter side gets a fixed length.

The inputs then have hundreds of sizes. To compile few programs, each input is padded to the
smallest of five buckets that contains it. Sizes are (height, width) in pixels.
"""

from collections.abc import Iterable

import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data.transforms import Warp, padded_size, scaling, warp_matrix

Size = tuple[int, int]
COMMON_RATIO = 4 / 3  # of most photos: width / height


def short_side_size(image_size: Size, input_size: Size, short_side: int = 0) -> Size:
    """Return the size of an image after resizing without distortion.

    The image is scaled until its shorter side is `short_side` or its longer side is the larger one
    of `input_size`, whichever happens first. Both are rounded to the nearest pixel, as in
    mmdetection, so the factors of the two axes may differ slightly.

    Args:
      image_size: of the image.
      input_size: config.input_size.
      short_side: in pixels; 0 = the smaller one of `input_size`.
    """
    short_side = short_side or min(input_size)
    scale = min(max(input_size) / max(image_size), short_side / min(image_size))
    height, width = (max(1, int(side * scale + 0.5)) for side in image_size)
    return height, width


def input_matrix(image_size: Size, config: Config) -> tuple[np.ndarray, Size]:
    """Return the matrix [3, 3] float64 from image to input pixels without augmentation, and the
    size that the image fills."""
    if config.data.resize == "short_side":
        size = short_side_size(image_size, config.input_size)
        return scaling(size[1] / image_size[1], size[0] / image_size[0]), size
    return warp_matrix(Warp(), image_size, config.input_size, config.data.keep_ratio)


def buckets(input_size: Size) -> tuple[Size, ...]:
    """Return the sizes of all inputs, smallest area first.

    They are two landscape sizes, the same in portrait, and a square for batches of both.
    """
    short, long = padded_size((min(input_size), max(input_size)))
    common, _ = padded_size((round(COMMON_RATIO * min(input_size)), 0))
    sizes = {(short, common), (common, short), (short, long), (long, short), (long, long)}
    return tuple(sorted(sizes, key=lambda size: (size[0] * size[1], size)))


def bucket_of(sizes: Iterable[Size], input_size: Size) -> Size:
    """Return the smallest bucket that contains images of all these sizes."""
    heights, widths = zip(*sizes)
    return next(
        (height, width)
        for height, width in buckets(input_size)
        if max(heights) <= height and max(widths) <= width
    )
