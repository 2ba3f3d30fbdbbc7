"""Pictures of boxes: detections, ground truth, contact sheets.

Images are uint8 BGR [height, width, 3], the order OpenCV reads and writes; boxes are xyxy in pixels
of the image that is drawn on. Nothing here changes its input.
"""

import colorsys
import math
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from nanodet_jax.errors import UserError
from nanodet_jax.files import atomic_write

FONT = cv2.FONT_HERSHEY_SIMPLEX
BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (114, 114, 114)
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
GAP = 4  # pixels between the pictures of a grid
# OpenCV 4 draws every byte of a non-ASCII letter as a question mark; OpenCV 5 draws the letter.
DRAWS_UNICODE = int(cv2.__version__.split(".")[0]) >= 5

Color = tuple[int, int, int]  # blue, green, red, 0 .. 255
_Rectangle = tuple[int, int, int, int]  # left, top, right, bottom: whole pixels, all of them drawn


class _Style(NamedTuple):
    line: int  # width of a box's line, pixels
    scale: float  # of the font
    weight: int  # of the font
    padding: int  # around a text, pixels


class _Strip(NamedTuple):
    """A text on a filled rectangle, in whole pixels, far edges excluded."""

    text: str
    color: Color
    left: int
    top: int
    right: int
    bottom: int
    baseline: int  # y on which the letters stand


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    threshold: float = 0.35,
) -> np.ndarray:
    """A copy of the image with a box, class name and score for each of n detections.

    Lines and letters grow with the image. A name stands where it covers no better detection's
    name; in a crowd where there is no such place, the box stands without it. Boxes that lie
    outside the image are left out.

    Args:
      image: [H, W, 3] uint8 BGR.
      boxes: [n, 4] xyxy, pixels of the image.
      scores: [n] in [0, 1].
      labels: [n] integers, 0 .. C-1.
      class_names: C names; where OpenCV cannot draw a letter, its closest ASCII letter is drawn.
      threshold: detections with a lower score are left out.

    Returns:
      [H, W, 3] uint8 BGR, equal to `image` where nothing is drawn.
    """
    picture = _copy(image)
    style = _style(picture)
    rectangles = _visible(boxes, picture)
    strips: list[_Strip] = []
    drawn: list[tuple[_Rectangle, Color]] = []
    for index in np.argsort(-np.asarray(scores, float), kind="stable"):
        rectangle, score, label = rectangles[index], float(scores[index]), int(labels[index])
        if rectangle is None or not score >= threshold:  # "not >=": nan is left out
            continue
        text = f"{_drawable(class_names[label], label)} {score:.0%}"
        strips += _place(text, class_color(label), rectangle, strips, picture, style)
        drawn.append((rectangle, class_color(label)))
    for rectangle, color in reversed(drawn):  # the best last, on top
        cv2.rectangle(picture, rectangle[:2], rectangle[2:], color, style.line)
    for strip in strips:  # after all boxes, so that no line crosses a name
        _write(picture, strip, style)
    return picture


def draw_ground_truth(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> np.ndarray:
    """A copy of the image with dashed white boxes, and names if labels are given.

    Args:
      image: [H, W, 3] uint8 BGR.
      boxes: [n, 4] xyxy, pixels of the image.
      labels: [n] integers, 0 .. C-1, or None for boxes without names.
      class_names: C names, needed with labels.

    Returns:
      [H, W, 3] uint8 BGR.
    """
    picture = _copy(image)
    style = _style(picture)
    strips: list[_Strip] = []
    for index, rectangle in enumerate(_visible(boxes, picture)):
        if rectangle is None:
            continue
        _dashed_rectangle(picture, rectangle, style)
        if labels is not None:
            label = int(labels[index])
            text = _drawable(class_names[label], label)
            strips += _place(text, WHITE, rectangle, strips, picture, style)
    for strip in strips:
        _write(picture, strip, style)
    return picture


def grid(
    images: Sequence[np.ndarray], columns: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """A contact sheet: images row by row, each in the middle of a cell, on grey.

    Args:
      images: at least one, each [H, W, 3] uint8 BGR of any size.
      columns: how many stand side by side, at least one.
      size: (height, width) of a cell, to which images are scaled undistorted; None for cells as
        large as the largest image, and no scaling.

    Returns:
      [height, width, 3] uint8 BGR.

    Raises:
      ValueError: if there is no image or no column.
    """
    if not images or columns < 1:
        raise ValueError(f"a grid needs images and columns, got {len(images)} and {columns}")
    if size is not None:
        images = [_scale_to_fit(image, size) for image in images]
    height = max(image.shape[0] for image in images) if size is None else size[0]
    width = max(image.shape[1] for image in images) if size is None else size[1]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    sheet = np.full(shape, GREY, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top = GAP + row * (height + GAP) + (height - image.shape[0]) // 2
        left = GAP + column * (width + GAP) + (width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image [H, W, 3] uint8 BGR, as the ending of the name says; folders are made.

    Raises:
      UserError: naming the path, if OpenCV does not know the ending or the file cannot be written.
    """
    path = Path(path)
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise UserError(f"{path}: cannot be saved as {path.suffix!r}; end the name in .jpg or .png")
    with atomic_write(path) as file:
        file.write(data.tobytes())


def class_color(label: int) -> Color:
    """The colour (blue, green, red) of a class: always the same, and far from its neighbours'."""
    # Steps of the golden ratio never fall on a former hue and always split a widest gap.
    hue = label * GOLDEN_RATIO % 1.0
    value = (1.0, 0.75, 0.9)[label // 8 % 3]  # tells apart hues that are close
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * blue), round(255 * green), round(255 * red)


def _copy(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    return np.array(image, order="C")  # OpenCV draws on contiguous arrays only


def _style(image: np.ndarray) -> _Style:
    side = min(image.shape[:2])
    scale = max(0.38, side / 1000)  # smaller letters run together
    return _Style(
        line=max(1, round(side / 240)),
        scale=scale,
        weight=max(1, round(2 * scale)),
        padding=max(2, round(6 * scale)),
    )


def _visible(boxes: np.ndarray, image: np.ndarray) -> list[_Rectangle | None]:
    """Whole pixels of each box, cut at the image's edges; None where nothing is left of it."""
    height, width = image.shape[:2]
    limit = np.array([width, height, width, height], float)
    cut = np.clip(np.asarray(boxes, float).reshape(-1, 4), 0, limit)
    inside = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])  # False for nan
    cut[~inside] = 0
    corners = np.minimum(np.round(cut), limit - 1).astype(int).tolist()
    return [
        (left, top, right, bottom) if shown else None
        for (left, top, right, bottom), shown in zip(corners, inside)
    ]


def _drawable(name: str, label: int) -> str:
    name = " ".join(name.encode("utf-8", "replace").decode("utf-8").split())
    if DRAWS_UNICODE or name.isascii():
        return name or f"class {label}"
    letters = unicodedata.normalize("NFKD", name)
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    plain = letters.encode("ascii", "replace").decode("ascii")
    return plain if any(letter.isalnum() for letter in plain) else f"class {label}"


def _place(
    text: str,
    color: Color,
    rectangle: _Rectangle,
    taken: Sequence[_Strip],
    image: np.ndarray,
    style: _Style,
) -> list[_Strip]:
    """The first free place: above the box, inside at its top, below, inside at its bottom.

    An empty list where all are taken. A text too long for the image loses its end.
    """
    height, width = image.shape[:2]
    room = width - 2 * style.padding
    lengths = range(1, len(text) + 1)
    fitting = bisect_right(lengths, room, key=lambda n: _text_size(text[:n], style)[0])
    text = text[: max(1, fitting)]
    text_width, ascent, descent = _text_size(text, style)
    across, down = text_width + 2 * style.padding, ascent + descent + style.padding
    half = style.line // 2
    x1, y1, x2, y2 = rectangle
    for x in (x1 - half, x2 + half + 1 - across):
        left = max(0, min(x, width - across))
        for y in (y1 - half - down, y1 - half, y2 + half + 1, y2 + half + 1 - down):
            top = max(0, min(y, height - down))
            if abs(top - y) > half:
                continue  # pushed back into the image, it would stand at another place
            baseline = top + ascent + style.padding // 2
            strip = _Strip(text, color, left, top, left + across, top + down, baseline)
            if not any(_touch(strip, other) for other in taken):
                return [strip]
    return []


def _text_size(text: str, style: _Style) -> tuple[int, int, int]:
    (width, ascent), descent = cv2.getTextSize(text, FONT, style.scale, style.weight)
    return width, ascent, descent


def _touch(a: _Strip, b: _Strip) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


def _write(image: np.ndarray, strip: _Strip, style: _Style) -> None:
    image[strip.top : strip.bottom, strip.left : strip.right] = strip.color
    blue, green, red = strip.color
    brightness = 0.114 * blue + 0.587 * green + 0.299 * red
    ink = BLACK if brightness > 128 else WHITE
    at = (strip.left + style.padding, strip.baseline)
    cv2.putText(image, strip.text, at, FONT, style.scale, ink, style.weight, cv2.LINE_AA)


def _dashed_rectangle(image: np.ndarray, rectangle: _Rectangle, style: _Style) -> None:
    x1, y1, x2, y2 = rectangle
    line, dash = max(1, style.line // 2), 4 * style.line + 2
    cv2.rectangle(image, (x1, y1), (x2, y2), BLACK, line)  # shows between dashes, on white too
    for x in range(x1, x2, 2 * dash):
        for y in (y1, y2):
            cv2.line(image, (x, y), (min(x + dash, x2), y), WHITE, line)
    for y in range(y1, y2, 2 * dash):
        for x in (x1, x2):
            cv2.line(image, (x, y), (x, min(y + dash, y2)), WHITE, line)


def _scale_to_fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = image.shape[:2]
    factor = min(size[0] / height, size[1] / width)
    fitted = (max(1, int(width * factor)), max(1, int(height * factor)))
    return cv2.resize(
        image, fitted, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    )
