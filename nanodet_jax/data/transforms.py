"""Transforms from the pixels of an image file to the input of the network, as in the original.

Random parameters are drawn first, so the result depends only on the image and a few numbers. Sizes
are (height, width). Matrices act on (x, y, 1), in pixels.
"""

from typing import NamedTuple

import cv2
import numpy as np

from nanodet_jax.config import Augment
from nanodet_jax.errors import UserError
from nanodet_jax.structures import GroundTruth

Values = tuple[float, ...]
MAX_PIXEL = 1e18  # largest pixel value of an input; batch norm squares it in float32
DIVISOR = 32  # padded sides are multiples of this, as in the original


class Warp(NamedTuple):
    """Geometric transform of one image. The parameters are applied in this order."""

    perspective: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    stretch: tuple[float, float] = (1.0, 1.0)  # x, y
    rotation: float = 0.0  # degrees
    shear: tuple[float, float] = (0.0, 0.0)  # degrees, x and y
    flip: bool = False  # left to right
    center: tuple[float, float] = (0.5, 0.5)  # new center, as fractions of width and height


class Color(NamedTuple):
    """Color transform of one image. The parameters apply to pixels in [0, 1], in this order."""

    brightness: float = 0.0  # added to pixels
    contrast: float = 1.0  # factor
    saturation: float = 1.0  # factor


def sample(rng: np.random.Generator, augment: Augment) -> tuple[Warp, Color]:
    """Draw the transforms of one image. Each color parameter is neutral with probability 1/2."""

    # Call the generator once for all parameters: separate calls would take three times as long.
    draws = iter(rng.random(17).tolist())

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(draws)

    def symmetric(value: float) -> float:
        return between(-value, value)

    warp = Warp(
        perspective=(symmetric(augment.perspective), symmetric(augment.perspective)),
        scale=between(*augment.scale),
        stretch=(between(*augment.stretch_x), between(*augment.stretch_y)),
        rotation=symmetric(augment.rotation),
        shear=(symmetric(augment.shear), symmetric(augment.shear)),
        flip=next(draws) < augment.flip,
        center=(0.5 + symmetric(augment.translate), 0.5 + symmetric(augment.translate)),
    )
    applied = [next(draws) < 0.5 for _ in Color._fields]
    drawn = Color(
        symmetric(augment.brightness), between(*augment.contrast), between(*augment.saturation)
    )
    chosen = (value if use else neutral for value, use, neutral in zip(drawn, applied, Color()))
    return warp, Color(*chosen)


def scaling(x: float, y: float) -> np.ndarray:
    """Return the matrix [3, 3] float64 that multiplies coordinates by x and y."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def translation(x: float, y: float) -> np.ndarray:
    """Return the matrix [3, 3] float64 that adds x and y to coordinates."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def warp_matrix(
    warp: Warp, image_size: tuple[int, int], input_size: tuple[int, int], keep_ratio: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the matrix [3, 3] float64 from image to input pixels, and the size that it fills.

    Without `keep_ratio`, the size (height, width) is `input_size`. With it, the size is the largest
    one within `input_size` that has the aspect ratio of the image, truncated to whole pixels as in
    the original.
    """
    (height, width), (out_height, out_width) = image_size, input_size
    matrix = translation(-width / 2, -height / 2)
    # Skip transforms at their defaults, which would multiply by the identity.
    if warp.perspective != (0, 0):
        projection = np.eye(3)
        projection[2, :2] = warp.perspective
        matrix = projection @ matrix
    matrix = scaling(warp.scale, warp.scale) @ matrix
    matrix = scaling(*warp.stretch) @ matrix
    if warp.rotation != 0:
        angle = np.deg2rad(warp.rotation)
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]]) @ matrix
    if warp.shear != (0, 0):
        tan_x, tan_y = np.tan(np.deg2rad(warp.shear))
        matrix = np.array([[1.0, tan_x, 0.0], [tan_y, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ matrix
    if warp.flip:
        matrix = scaling(-1.0, 1.0) @ matrix
    matrix = translation(warp.center[0] * width, warp.center[1] * height) @ matrix
    if not keep_ratio:
        return scaling(out_width / width, out_height / height) @ matrix, input_size
    size = _fitting(image_size, input_size)
    # Because the size is truncated, this ratio may be slightly smaller than that for input_size.
    ratio = _ratio(image_size, size)
    to_origin = translation(-width / 2, -height / 2)
    to_center = translation(size[1] / 2, size[0] / 2)
    return to_center @ scaling(ratio, ratio) @ to_origin @ matrix, size


def resize(
    image: np.ndarray, size: tuple[int, int], flip: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image as mmdetection does, and flip it horizontally if `flip` is True.

    Interpolation is bilinear between pixel centers, and shrinking does not average pixels.

    Args:
      image: [h, w, 3] uint8.
      size: (height, width) of the result.
      flip: whether to flip the image.

    Returns:
      The image [height, width, 3] uint8, and the matrix [3, 3] float64 that moves box corners from
      the original image to the result.
    """
    height, width = image.shape[:2]
    matrix = scaling(size[1] / width, size[0] / height)
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    if flip:
        return cv2.flip(image, 1), translation(size[1], 0) @ scaling(-1.0, 1.0) @ matrix
    return image, matrix


def _ratio(image_size: tuple[int, int], input_size: tuple[int, int]) -> float:
    (height, width), (out_height, out_width) = image_size, input_size
    return out_height / height if width / height < out_width / out_height else out_width / width


def _fitting(image_size: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
    ratio = _ratio(image_size, input_size)
    return max(int(ratio * image_size[0]), 1), max(int(ratio * image_size[1]), 1)


def warp_image(
    image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], pixel_indices: bool = True
) -> np.ndarray:
    """Warp an image [height, width, 3] uint8 to `size`: bilinear, and black outside the image.

    With `pixel_indices` the matrix acts on pixel indices, and shrinking does not average. The
    published weights were trained with this behavior of the original. Otherwise the matrix acts on
    continuous coordinates, as for boxes: the center of the first pixel is at (0.5, 0.5). Shrinking
    then averages.
    """
    shrunk, matrix = resampling(matrix, image.shape[:2], pixel_indices)
    if shrunk != image.shape[:2]:
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    return cv2.warpPerspective(image, matrix, size[::-1])


def resampling(
    matrix: np.ndarray, image_size: tuple[int, int], pixel_indices: bool
) -> tuple[tuple[int, int], np.ndarray]:
    """Split a warp into averaging and bilinear interpolation, as `warp_image` does.

    Returns:
      The (height, width) that the image is first averaged down to (its own size if it is not
      shrunk), and the matrix [3, 3] float64 from pixel indices of the averaged image to pixel
      indices of the input.
    """
    if pixel_indices:
        return image_size, matrix
    (height, width), stretch = image_size, np.linalg.norm(matrix[:2, :2], axis=0)
    rows, columns = (
        max(round(side * min(factor, 1.0)), 1)
        for side, factor in zip((height, width), stretch[::-1])
    )
    matrix = matrix @ scaling(width / columns, height / rows)
    return (rows, columns), translation(-0.5, -0.5) @ matrix @ translation(0.5, 0.5)


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse [3, 3] float32 of a warp, for device augmentation.

    It is all zeros for a singular warp, such as an image seen edge-on. All pixels are then
    outside the image, hence black, as with OpenCV.
    """
    try:
        with np.errstate(over="ignore"):  # overflow gives inf, which is outside the image
            return np.linalg.inv(matrix).astype(np.float32)
    except np.linalg.LinAlgError:
        return np.zeros((3, 3), np.float32)


def check_pixels(mean: Values, std: Values, augment: Augment | None = None) -> None:
    """Check that pixels stay below `MAX_PIXEL` after normalization and color transforms.

    Raises:
      UserError: naming the fields, if they do not.
    """
    at_most = 1.0
    reach = max((at_most + abs(m) / 255) / (s / 255) for m, s in zip(mean, std))
    if not reach <= MAX_PIXEL:
        raise UserError(
            f"config.data.mean={tuple(mean)}, config.data.std={tuple(std)}: normalized pixels "
            f"would reach {reach:.0e}; use a mean from 0 to 255 and a std of about 50"
        )
    if augment is None:
        return
    at_most = (1 + augment.brightness) * augment.contrast[1] * (1 + augment.saturation[1])
    reach = max((at_most + abs(m) / 255) / (s / 255) for m, s in zip(mean, std))
    if not reach <= MAX_PIXEL:
        raise UserError(
            f"config.augment.brightness={augment.brightness:g}, contrast={augment.contrast}, "
            f"saturation={augment.saturation}: pixels would reach {reach:.0e}; these values "
            "apply to pixels in [0, 1], so use factors near 1 and a brightness below 1"
        )


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the bounding boxes [n, 4] float32 xyxy of the warped boxes, clipped to `size`.

    A box outside `size` becomes a box of area 0 on the border, for which `is_visible` is False.
    """
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    corners = np.stack([[x1, x2, x1, x2], [y1, y2, y2, y1], np.ones((4, len(x1)))])
    warped = np.einsum("ij,jkn->ikn", matrix, corners)
    limits = np.array(size[::-1], np.float64).reshape(2, 1, 1)
    inside = np.clip(warped[:2] / warped[2], 0.0, limits)
    return np.concatenate([inside.min(axis=1), inside.max(axis=1)]).T.astype(np.float32, order="C")


def is_visible(boxes: np.ndarray) -> np.ndarray:
    """Return for each box [n, 4] whether both sides are at least one pixel long: [n] bool."""
    return np.all(boxes[:, 2:] - boxes[:, :2] >= 1, axis=1)


def color_image(image: np.ndarray, color: Color) -> np.ndarray:
    """Convert uint8 BGR to float32 in [0, 1], and transform the colors.

    As in the original, the result is not clipped, so it can be outside [0, 1].
    """
    pixels: np.ndarray = image.astype(np.float32)
    pixels /= np.float32(255)
    if color.brightness != 0:
        pixels += np.float32(color.brightness)
    if color.contrast != 1:
        pixels *= np.float32(color.contrast)
    if color.saturation != 1:
        hsv: np.ndarray = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
        hsv[..., 1] *= np.float32(color.saturation)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=pixels)
    return pixels


def normalize(
    pixels: np.ndarray, mean: Values, std: Values, out: np.ndarray | None = None
) -> np.ndarray:
    """Subtract `mean` from pixels and divide by `std`.

    Pixels are float32 BGR in [0, 1]; `mean` and `std` are for pixels from 0 to 255. The result is
    written to `out`, if given: a float32 array of the same shape, which may be a view.
    """
    if out is None:
        out = np.empty_like(pixels)
    # Use whole rows: NumPy is seven times slower if it broadcasts only three numbers.
    flat, rows = (image.reshape(len(image), -1) for image in (pixels, out))  # views
    center, scale = (np.tile(np.asarray(x, np.float32) / 255, pixels.shape[1]) for x in (mean, std))
    np.subtract(flat, center, out=rows)
    np.divide(rows, scale, out=rows)
    return out


def reduced_to_original(
    image_size: tuple[int, int], reduced_size: tuple[int, int], pixel_indices: bool
) -> np.ndarray:
    """Return the matrix [3, 3] float64 from a reduced image to the image before reduction.

    `pixel_indices` is explained in `warp_image`.
    """
    matrix = scaling(image_size[1] / reduced_size[1], image_size[0] / reduced_size[0])
    return translation(-0.5, -0.5) @ matrix @ translation(0.5, 0.5) if pixel_indices else matrix


def pad(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pad a normalized image on the right and bottom to (height, width), with 0, the mean color."""
    (height, width), (rows, columns) = image.shape[:2], size
    if (height, width) == (rows, columns):
        return image
    return np.pad(image, ((0, rows - height), (0, columns - width), (0, 0)))


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Round (height, width) up to multiples of 32."""
    return (-(-size[0] // DIVISOR) * DIVISOR, -(-size[1] // DIVISOR) * DIVISOR)


def fill_slots(
    boxes: np.ndarray, labels: np.ndarray, ignore: np.ndarray, slots: int
) -> GroundTruth:
    """Return slots with objects first, then ignore regions, then padding; drop excess boxes."""
    order = np.argsort(ignore, kind="stable")[:slots]
    count = len(order)
    ground_truth = GroundTruth(
        boxes=np.zeros((slots, 4), np.float32),
        labels=np.zeros(slots, np.int32),
        valid=np.zeros(slots, bool),
        ignore=np.zeros(slots, bool),
    )
    ground_truth.boxes[:count] = boxes[order]
    ground_truth.labels[:count] = np.where(ignore[order], 0, labels[order])
    ground_truth.valid[:count] = ~ignore[order]
    ground_truth.ignore[:count] = ignore[order]
    return ground_truth
