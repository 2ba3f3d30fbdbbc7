"""Input sizes that depend on the image: as in mmdetection, its shorter side gets a given length.

Images then have hundreds of different sizes. To limit the number of compiled programs, each batch
is padded to one of at most five sizes, called buckets: the smallest one that contains its images.
Sizes are (height, width) in pixels.
"""

from collections.abc import Iterable

import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data.transforms import Warp, padded_size, scaling, warp_matrix

Size = tuple[int, int]
COMMON_RATIO = 4 / 3  # longer side / shorter side of most photos


def short_side_size(image_size: Size, input_size: Size, short_side: int = 0) -> Size:
    """Return the size of an image after resizing without distortion.

    The image is scaled until its shorter side equals `short_side` or its longer side equals the
    larger value of `input_size`, whichever comes first. As in mmdetection, both sides are then
    rounded to whole pixels, so the scale factors of the two axes may differ slightly.

    Args:
      image_size: size of the original image.
      input_size: config.input_size.
      short_side: length of the shorter side; 0 = the smaller value of `input_size`.
    """
    short_side = short_side or min(input_size)
    scale = min(max(input_size) / max(image_size), short_side / min(image_size))
    height, width = (max(1, int(side * scale + 0.5)) for side in image_size)
    return height, width


def input_matrix(image_size: Size, config: Config) -> tuple[np.ndarray, Size]:
    """Return how an image of a given size is placed in the input, without augmentation.

    Returns:
      The matrix [3, 3] float64 from pixels of the image to pixels of the input, and the size of the
      part of the input that the image fills.
    """
    if config.data.resize == "short_side":
        size = short_side_size(image_size, config.input_size)
        return scaling(size[1] / image_size[1], size[0] / image_size[0]), size
    return warp_matrix(Warp(), image_size, config.input_size, config.data.keep_ratio)


def buckets(input_size: Size) -> tuple[Size, ...]:
    """Return the sizes that inputs may have, in order of increasing area.

    There are two landscape sizes, the same two in portrait format, and a square for batches that
    contain both formats.

    Args:
      input_size: config.input_size.
    """
    short, long = padded_size((min(input_size), max(input_size)))
    common, _ = padded_size((round(COMMON_RATIO * min(input_size)), 0))
    sizes = {(short, common), (common, short), (short, long), (long, short), (long, long)}
    return tuple(sorted(sizes, key=lambda size: (size[0] * size[1], size)))


def bucket_of(sizes: Iterable[Size], input_size: Size) -> Size:
    """Return the smallest bucket that contains images of all these sizes.

    Args:
      sizes: results of `short_side_size`, at least one.
      input_size: config.input_size.
    """
    heights, widths = zip(*sizes)
    return next(
        (height, width)
        for height, width in buckets(input_size)
        if max(heights) <= height and max(widths) <= width
    )
