"""Convert images from callers to uint8 BGR pixels [height, width, 3]."""

import contextlib
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from PIL import Image as PillowImage

from nanodet_jax.data.records import MAX_MEGAPIXELS, decode, make_record
from nanodet_jax.errors import UserError

Image = str | Path | np.ndarray | PillowImage.Image
Color = Literal["bgr", "rgb"]  # order of the channels of an array
ACCEPTED = (
    "a path, a Pillow image, or a uint8 array [height, width], [height, width, 1], "
    "[height, width, 3] or [height, width, 4]"
)
# Pillow modes with more than 8 bits per channel. Pillow clips their values when it converts them.
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def check_color(color: str) -> None:
    """Check the name of a channel order.

    Raises:
      UserError: if it is neither "bgr" nor "rgb".
    """
    if color not in get_args(Color):
        raise UserError(f'color={color!r}: must be "bgr" (the order of OpenCV) or "rgb"')


def read_image(
    image: Image,
    max_megapixels: float = MAX_MEGAPIXELS,
    *,
    color: Color = "bgr",
    name: str = "image",
) -> np.ndarray:
    """Return the pixels of an image file, a Pillow image or an array.

    Transparency is dropped. A file is rotated according to its EXIF orientation; a Pillow image is
    not. An array with three or four channels is not copied: the result is a view of it.

    Args:
      image: see `ACCEPTED`.
      max_megapixels: refuse to read a larger image file.
      color: channel order of an array with three or four channels.
      name: the image's name in error messages; a file is named by its path.

    Returns:
      [height, width, 3] uint8 BGR.

    Raises:
      UserError: if the file is too large or cannot be read, or the image has another type, dtype or
        shape.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, color, name)
    if isinstance(image, PillowImage.Image):
        return _from_pillow(image, name)
    if not isinstance(image, str | Path):
        raise UserError(f"{name} {describe(image)}; pass {ACCEPTED}")
    path = Path(image)
    with contextlib.suppress(RuntimeError):  # a file named "~name" where no such user exists
        path = path.expanduser()
    try:
        return decode(make_record(0, path.name, path, (0, 0), [], [], [], []), max_megapixels)
    except UserError as error:  # the message has an image id, which only a dataset defines
        raise UserError(str(error).replace(f"{path} (image 0)", str(path), 1)) from error


def _from_array(image: np.ndarray, color: Color, name: str) -> np.ndarray:
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or 0 in image.shape or channels not in (1, 3, 4):
        raise UserError(
            f"{name} has shape {image.shape}: must be [height, width] or [height, width, channels] "
            "with 1, 3 or 4 channels, and not empty"
        )
    if image.dtype != np.uint8:
        fix = "multiply it by 255 if its values are 0 to 1, and " if image.dtype.kind == "f" else ""
        raise UserError(
            f"{name} has dtype {image.dtype}: must be uint8, from 0 to 255; {fix}convert it with "
            ".astype(np.uint8)"
        )
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return image[..., :3] if color == "bgr" else image[..., 2::-1]


def _from_pillow(image: PillowImage.Image, name: str) -> np.ndarray:
    if image.mode in DEEP_MODES:
        raise UserError(
            f"{name} is a Pillow image of mode {image.mode!r}: must have 8 bits per channel; scale "
            'its values to 0 to 255 and convert it to "L", or pass its path'
        )
    try:
        pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow decodes here, and raises many types of exceptions
        raise UserError(f"{name}: Pillow cannot decode it: {error}") from error
    if 0 in pixels.shape:
        raise UserError(f"{name} has size {image.width}x{image.height}: must not be empty")
    return pixels[..., ::-1]


def describe(image: Any) -> str:
    """Describe a value of the wrong type, as the predicate of a sentence."""
    if image is None:
        return "is None, which cv2.imread returns for a file that it cannot read"
    name = f"{type(image).__module__}.{type(image).__name__}".removeprefix("builtins.")
    return f"has type {name}"
