"""From an image file's pixels to the network's, with the original's geometry and colours.

Parameters are drawn apart from the pixels, so that a picture is a function of the image and a
handful of numbers. Sizes are (height, width); matrices act on (x, y, 1), pixel indices.
"""

from typing import NamedTuple

import cv2
import numpy as np

from nanodet_jax.config import Augment
from nanodet_jax.errors import UserError
from nanodet_jax.structures import GroundTruth

Values = tuple[float, ...]
# Of an input: its square, which a batch norm takes, must be a float32.
LARGEST_PIXEL = 1e18
DIVISOR = 32  # padded sides are multiples of the coarsest stride


class Warp(NamedTuple):
    """Factors of one image's geometry, in the order in which they act."""

    perspective: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    stretch: tuple[float, float] = (1.0, 1.0)  # x, y
    rotation: float = 0.0  # degrees
    shear: tuple[float, float] = (0.0, 0.0)  # degrees, x and y
    flip: bool = False  # left to right
    center: tuple[float, float] = (0.5, 0.5)  # where the centre goes, as a share of width, height


class Color(NamedTuple):
    """Factors of one image's colours, in the order in which they act on pixels in [0, 1]."""

    brightness: float = 0.0  # added
    contrast: float = 1.0  # multiplies
    saturation: float = 1.0  # multiplies


def sample(rng: np.random.Generator, augment: Augment) -> tuple[Warp, Color]:
    """Factors of one training image: geometry always drawn, colours each with probability 1/2."""

    # Drawn at once: a call of the generator for each would take three times as long.
    shares = iter(rng.random(17).tolist())

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(shares)

    def around(value: float) -> float:
        return between(-value, value)

    warp = Warp(
        perspective=(around(augment.perspective), around(augment.perspective)),
        scale=between(*augment.scale),
        stretch=(between(*augment.stretch_x), between(*augment.stretch_y)),
        rotation=around(augment.rotation),
        shear=(around(augment.shear), around(augment.shear)),
        flip=next(shares) < augment.flip,
        center=(0.5 + around(augment.translate), 0.5 + around(augment.translate)),
    )
    applied = [next(shares) < 0.5 for _ in Color._fields]
    drawn = Color(
        around(augment.brightness), between(*augment.contrast), between(*augment.saturation)
    )
    chosen = (value if use else same for value, use, same in zip(drawn, applied, Color()))
    return warp, Color(*chosen)


def scaled(x: float, y: float) -> np.ndarray:
    """Matrix that multiplies coordinates."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def shifted(x: float, y: float) -> np.ndarray:
    """Matrix that adds to coordinates."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def warp_matrix(
    warp: Warp, image_size: tuple[int, int], input_size: tuple[int, int], keep_ratio: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    """Matrix [3, 3] float64 from image to input pixels, and the (height, width) it fills.

    With keep_ratio that is the largest size within `input_size` of the image's own shape,
    truncated to whole pixels as in the original.
    """
    (height, width), (out_height, out_width) = image_size, input_size
    matrix = shifted(-width / 2, -height / 2)
    # What is left at its default would multiply by one.
    if warp.perspective != (0, 0):
        projection = np.eye(3)
        projection[2, :2] = warp.perspective
        matrix = projection @ matrix
    matrix = scaled(warp.scale, warp.scale) @ matrix
    matrix = scaled(*warp.stretch) @ matrix
    if warp.rotation != 0:
        angle = np.deg2rad(warp.rotation)
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]]) @ matrix
    if warp.shear != (0, 0):
        tan_x, tan_y = np.tan(np.deg2rad(warp.shear))
        matrix = np.array([[1.0, tan_x, 0.0], [tan_y, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ matrix
    if warp.flip:
        matrix = scaled(-1.0, 1.0) @ matrix
    matrix = shifted(warp.center[0] * width, warp.center[1] * height) @ matrix
    if not keep_ratio:
        return scaled(out_width / width, out_height / height) @ matrix, input_size
    size = _fitting(image_size, input_size)
    # The ratio follows from the truncated size, not from input_size: a hair less than it could be.
    ratio = _ratio(image_size, size)
    resize = (
        shifted(size[1] / 2, size[0] / 2) @ scaled(ratio, ratio) @ shifted(-width / 2, -height / 2)
    )
    return resize @ matrix, size


def _ratio(image_size: tuple[int, int], input_size: tuple[int, int]) -> float:
    (height, width), (out_height, out_width) = image_size, input_size
    return out_height / height if width / height < out_width / out_height else out_width / width


def _fitting(image_size: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
    ratio = _ratio(image_size, input_size)
    return max(int(ratio * image_size[0]), 1), max(int(ratio * image_size[1]), 1)


def warp_image(
    image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], pixel_indices: bool = True
) -> np.ndarray:
    """Image [height, width, 3] uint8 on the input's pixels: bilinear, black outside.

    With `pixel_indices` the matrix acts on pixel indices and nothing is averaged where the image
    shrinks: the original's way, with which the published weights grew up. Without, a pixel is a
    square whose centre lies half a pixel from its corner, as boxes take it to be, and shrinking
    averages.
    """
    shrunk, matrix = resampling(matrix, image.shape[:2], pixel_indices)
    if shrunk != image.shape[:2]:
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    return cv2.warpPerspective(image, matrix, size[::-1])


def resampling(
    matrix: np.ndarray, image_size: tuple[int, int], pixel_indices: bool
) -> tuple[tuple[int, int], np.ndarray]:
    """How `warp_image` goes about it, for whoever does it elsewhere.

    Returns:
      The (height, width) that the image is averaged down to first, its own if it is not, and the
      matrix [3, 3] float64 from pixel indices there to those of the input.
    """
    if pixel_indices:
        return image_size, matrix
    (height, width), stretch = image_size, np.linalg.norm(matrix[:2, :2], axis=0)
    rows, columns = (
        max(round(side * min(factor, 1.0)), 1)
        for side, factor in zip((height, width), stretch[::-1])
    )
    matrix = matrix @ scaled(width / columns, height / rows)
    return (rows, columns), shifted(-0.5, -0.5) @ matrix @ shifted(0.5, 0.5)


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse [3, 3] float32 of a warp, for whoever warps elsewhere.

    All zeros for a warp that leaves nothing of the image, such as a perspective seen from its edge:
    no pixel then lies inside the image, and all are black, as OpenCV makes them.
    """
    try:
        with np.errstate(over="ignore"):  # what is beyond float32 lies outside, too
            return np.linalg.inv(matrix).astype(np.float32)
    except np.linalg.LinAlgError:
        return np.zeros((3, 3), np.float32)


def check_pixels(mean: Values, std: Values, augment: Augment | None = None) -> None:
    """Refuse colours and a normalisation under which pixels may grow beyond `LARGEST_PIXEL`.

    Raises:
      UserError: naming the fields.
    """
    at_most = 1.0
    reach = max((at_most + abs(m) / 255) / (s / 255) for m, s in zip(mean, std))
    if not reach <= LARGEST_PIXEL:
        raise UserError(
            f"config.data.mean={tuple(mean)}, config.data.std={tuple(std)}: pixels would reach "
            f"{reach:.0e}; both are in 0 .. 255, std about 50"
        )
    if augment is None:
        return
    at_most = (1 + augment.brightness) * augment.contrast[1] * (1 + augment.saturation[1])
    reach = max((at_most + abs(m) / 255) / (s / 255) for m, s in zip(mean, std))
    if not reach <= LARGEST_PIXEL:
        raise UserError(
            f"config.augment.brightness={augment.brightness:g}, contrast={augment.contrast}, "
            f"saturation={augment.saturation}: pixels would reach {reach:.0e}; they act on "
            "pixels in [0, 1], so give factors near 1 and a brightness below 1"
        )


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes [n, 4] xyxy around the warped corners of `boxes`, clipped to (height, width), float32.

    A box that leaves the frame becomes one without area on its border; `is_visible` tells.
    """
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    corners = np.stack([[x1, x2, x1, x2], [y1, y2, y2, y1], np.ones((4, len(x1)))])
    warped = np.einsum("ij,jkn->ikn", matrix, corners)
    limits = np.array(size[::-1], np.float64).reshape(2, 1, 1)
    inside = np.clip(warped[:2] / warped[2], 0.0, limits)
    return np.concatenate([inside.min(axis=1), inside.max(axis=1)]).T.astype(np.float32, order="C")


def is_visible(boxes: np.ndarray) -> np.ndarray:
    """A flag [n] per box [n, 4]: whether both sides measure a pixel or more."""
    return np.all(boxes[:, 2:] - boxes[:, :2] >= 1, axis=1)


def color_image(image: np.ndarray, color: Color) -> np.ndarray:
    """Image uint8 BGR to float32 in about [0, 1]; nothing is clipped, as in the original."""
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


def normalize(pixels: np.ndarray, mean, std, out: np.ndarray | None = None) -> np.ndarray:
    """Pixels in [0, 1], float32 BGR, to zero mean and unit variance of the given 0..255 values.

    Into `out`, if given: float32 of their shape, whose rows may be part of longer ones.
    """
    if out is None:
        out = np.empty_like(pixels)
    # Row by row: NumPy is seven times slower where it repeats only three numbers.
    flat, rows = (image.reshape(len(image), -1) for image in (pixels, out))  # views
    mean, std = (np.tile(np.asarray(x, np.float32) / 255, pixels.shape[1]) for x in (mean, std))
    np.subtract(flat, mean, out=rows)
    np.divide(rows, std, out=rows)
    return out


def from_reduced(
    image_size: tuple[int, int], reduced: tuple[int, int], pixel_indices: bool
) -> np.ndarray:
    """Matrix [3, 3] float64 from an image that was reduced back to itself; sizes (height, width).

    The way of `warp_image` to take coordinates is that of `pixel_indices`.
    """
    matrix = scaled(image_size[1] / reduced[1], image_size[0] / reduced[0])
    return shifted(-0.5, -0.5) @ matrix @ shifted(0.5, 0.5) if pixel_indices else matrix


def pad(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Image with zeros below and to the right, up to (height, width). Zero is the mean colour."""
    (height, width), (rows, columns) = image.shape[:2], size
    if (height, width) == (rows, columns):
        return image
    return np.pad(image, ((0, rows - height), (0, columns - width), (0, 0)))


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Smallest multiples of 32 that hold (height, width)."""
    return (-(-size[0] // DIVISOR) * DIVISOR, -(-size[1] // DIVISOR) * DIVISOR)


def fill_slots(
    boxes: np.ndarray, labels: np.ndarray, ignore: np.ndarray, slots: int
) -> GroundTruth:
    """Objects first, then ignore regions, then padding; what exceeds the slots is left out."""
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
