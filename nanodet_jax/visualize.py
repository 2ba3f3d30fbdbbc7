"""Draw detections and ground truth on images, and arrange images in a grid.

Images are uint8 BGR [height, width, 3], the channel order of OpenCV. Boxes are xyxy in pixels of
the image. No function changes its input.
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
BLACK, WHITE, GRAY = (0, 0, 0), (255, 255, 255), (114, 114, 114)
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
GAP = 4  # pixels between the images of a grid
THRESHOLD = 0.35  # lowest score that is drawn by default
# The detector suppresses boxes within each class only, so it may find several classes for one
# object. Drawn boxes are also suppressed across classes. Two boxes count as the same object if
# their IoU exceeds the threshold at which VOC and COCO's AP50 match a detection to an object.
IOU_THRESHOLD = 0.5
# OpenCV 4 draws each byte of a non-ASCII letter as a question mark; OpenCV 5 draws the letter.
DRAWS_UNICODE = int(cv2.__version__.split(".")[0]) >= 5

Color = tuple[int, int, int]  # blue, green, red, each 0 .. 255
_Rectangle = tuple[int, int, int, int]  # left, top, right, bottom: whole pixels, all inclusive


class _Style(NamedTuple):
    """Line and font sizes for an image."""

    line: int  # line width, pixels
    scale: float  # font scale
    weight: int  # stroke width of the font, pixels
    padding: int  # around a text, pixels


class _Label(NamedTuple):
    """Text on a filled rectangle, in whole pixels; `right` and `bottom` are exclusive."""

    text: str
    color: Color
    left: int
    top: int
    right: int
    bottom: int
    baseline: int  # y coordinate of the text's baseline


def select_detections(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float = THRESHOLD,
    *,
    draw_all: bool = False,
) -> np.ndarray:
    """Return the indices of the detections to draw: one per object, best first.

    Apply greedy non-maximum suppression across classes: drop a box whose iou with a better box
    exceeds `IOU_THRESHOLD`. Among equal scores, the earlier detection ranks higher.

    Args:
      boxes: [n, 4] xyxy.
      scores: [n] in [0, 1].
      threshold: drop detections with a lower score, or a score of nan.
      draw_all: also keep boxes that overlap a better box.

    Returns:
      [k] int64 indices into `boxes`, k <= n.
    """
    scores = np.asarray(scores, float)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= threshold]  # False for nan
    if draw_all:
        return order
    corners = np.asarray(boxes, float).reshape(-1, 4)[order]
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)  # xywh
    # NMSBoxes gets ranks instead of scores, to keep the order of equal scores.
    ranks = np.arange(len(order), 0.0, -1.0).tolist()
    kept = cv2.dnn.NMSBoxes(sides.tolist(), ranks, score_threshold=0.0, nms_threshold=IOU_THRESHOLD)
    return order[np.asarray(kept, int)]


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    threshold: float = THRESHOLD,
    *,
    draw_all: bool = False,
) -> np.ndarray:
    """Return a copy of the image with the box, class name and score of each detected object.

    Draw only the best-scoring class of each object (see `select_detections`), or every detection
    if `draw_all` is set. Skip boxes that lie outside the image. Lines and text scale with the
    image. A name never covers the name of a better detection; if no free space is left for it, draw
    the box alone.

    Args:
      image: [H, W, 3] uint8 BGR.
      boxes: [n, 4] xyxy, pixels of the image.
      scores: [n] in [0, 1].
      labels: [n] integers, 0 .. C-1.
      class_names: C names. Letters that OpenCV cannot draw become the closest ASCII letters.
      threshold: skip detections with a lower score.
      draw_all: also draw boxes that overlap a better box.

    Returns:
      [H, W, 3] uint8 BGR, equal to `image` where nothing is drawn.

    Raises:
      ValueError: if `image` has another dtype or shape.
    """
    picture = _copy(image)
    style = _style(picture)
    rectangles = _visible(boxes, picture)
    names: list[_Label] = []
    drawn: list[tuple[_Rectangle, Color]] = []
    for index in select_detections(boxes, scores, threshold, draw_all=draw_all):
        rectangle, score, label = rectangles[index], float(scores[index]), int(labels[index])
        if rectangle is None:
            continue
        text = f"{_drawable(class_names[label], label)} {score:.0%}"
        names += _place(text, class_color(label), rectangle, names, picture, style)
        drawn.append((rectangle, class_color(label)))
    for rectangle, color in reversed(drawn):  # the best detection last, on top
        cv2.rectangle(picture, rectangle[:2], rectangle[2:], color, style.line)
    for name in names:  # after all boxes, so that no line crosses a name
        _draw_label(picture, name, style)
    return picture


def draw_ground_truth(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> np.ndarray:
    """Return a copy of the image with dashed white boxes, and names if labels are given.

    Args:
      image: [H, W, 3] uint8 BGR.
      boxes: [n, 4] xyxy, pixels of the image.
      labels: [n] integers, 0 .. C-1, or None for boxes without names.
      class_names: C names; required with labels.

    Returns:
      [H, W, 3] uint8 BGR.

    Raises:
      ValueError: if `image` has another dtype or shape.
    """
    picture = _copy(image)
    style = _style(picture)
    names: list[_Label] = []
    for index, rectangle in enumerate(_visible(boxes, picture)):
        if rectangle is None:
            continue
        _dashed_rectangle(picture, rectangle, style)
        if labels is not None:
            label = int(labels[index])
            text = _drawable(class_names[label], label)
            names += _place(text, WHITE, rectangle, names, picture, style)
    for name in names:
        _draw_label(picture, name, style)
    return picture


def grid(
    images: Sequence[np.ndarray], columns: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Arrange images row by row on a gray background, each centered in its cell.

    Args:
      images: at least one, each [H, W, 3] uint8 BGR of any size.
      columns: number of images side by side, at least one.
      size: (height, width) of a cell; images are scaled to fit, keeping their aspect ratio. None:
        do not scale, and make cells as large as the largest image.

    Returns:
      [height, width, 3] uint8 BGR.

    Raises:
      ValueError: if there are no images or no columns.
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
    sheet = np.full(shape, GRAY, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top = GAP + row * (height + GAP) + (height - image.shape[0]) // 2
        left = GAP + column * (width + GAP) + (width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image [H, W, 3] uint8 BGR in the format of the path's suffix.

    Missing folders are created.

    Raises:
      UserError: naming the path, if OpenCV does not know the suffix or the file cannot be written.
    """
    path = Path(path)
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise UserError(f"{path}: cannot save an image as {path.suffix!r}; use .jpg or .png")
    with atomic_write(path) as file:
        file.write(data.tobytes())


def class_color(label: int) -> Color:
    """Return the color (blue, green, red) of a class. Adjacent labels have distinct colors."""
    # Steps of the golden ratio never repeat a hue, and each splits one of the widest gaps.
    hue = label * GOLDEN_RATIO % 1.0
    value = (1.0, 0.75, 0.9)[label // 8 % 3]  # separates colors of similar hue
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * blue), round(255 * green), round(255 * red)


def _copy(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    return np.array(image, order="C")  # OpenCV draws only on contiguous arrays


def _style(image: np.ndarray) -> _Style:
    side = min(image.shape[:2])
    scale = max(0.38, side / 1000)  # smaller text is illegible
    return _Style(
        line=max(1, round(side / 240)),
        scale=scale,
        weight=max(1, round(2 * scale)),
        padding=max(2, round(6 * scale)),
    )


def _visible(boxes: np.ndarray, image: np.ndarray) -> list[_Rectangle | None]:
    """Clip each box to the image and round it to whole pixels; None if it has no visible area."""
    height, width = image.shape[:2]
    limit = np.array([width, height, width, height], float)
    clipped = np.clip(np.asarray(boxes, float).reshape(-1, 4), 0, limit)
    inside = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])  # False for nan
    clipped[~inside] = 0
    corners = np.minimum(np.round(clipped), limit - 1).astype(int).tolist()
    return [
        (left, top, right, bottom) if shown else None
        for (left, top, right, bottom), shown in zip(corners, inside)
    ]


def _drawable(name: str, label: int) -> str:
    """Return the name on one line, with letters that the installed OpenCV can draw."""
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
    taken: Sequence[_Label],
    image: np.ndarray,
    style: _Style,
) -> list[_Label]:
    """Place a text above the box, inside it at the top, below it, or inside it at the bottom.

    Try these positions in order, first aligned with the left edge of the box, then with the right.
    Truncate a text that is wider than the image.

    Returns:
      A list with the label at the first position that touches no label in `taken`, or an empty
      list.
    """
    height, width = image.shape[:2]
    available = width - 2 * style.padding
    lengths = range(1, len(text) + 1)
    fitting = bisect_right(lengths, available, key=lambda n: _text_size(text[:n], style)[0])
    text = text[: max(1, fitting)]
    text_width, ascent, descent = _text_size(text, style)
    label_width, label_height = text_width + 2 * style.padding, ascent + descent + style.padding
    half = style.line // 2
    x1, y1, x2, y2 = rectangle
    outside_top, inside_top = y1 - half - label_height, y1 - half
    outside_bottom, inside_bottom = y2 + half + 1, y2 + half + 1 - label_height
    for x in (x1 - half, x2 + half + 1 - label_width):
        left = max(0, min(x, width - label_width))
        for y in (outside_top, inside_top, outside_bottom, inside_bottom):
            top = max(0, min(y, height - label_height))
            if abs(top - y) > half:
                continue  # moved into the image, the label would be elsewhere on the box
            right, bottom = left + label_width, top + label_height
            baseline = top + ascent + style.padding // 2
            label = _Label(text, color, left, top, right, bottom, baseline)
            if not any(_overlap(label, other) for other in taken):
                return [label]
    return []


def _text_size(text: str, style: _Style) -> tuple[int, int, int]:
    (width, ascent), descent = cv2.getTextSize(text, FONT, style.scale, style.weight)
    return width, ascent, descent


def _overlap(a: _Label, b: _Label) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


def _draw_label(image: np.ndarray, label: _Label, style: _Style) -> None:
    image[label.top : label.bottom, label.left : label.right] = label.color
    blue, green, red = label.color
    brightness = 0.114 * blue + 0.587 * green + 0.299 * red
    text_color = BLACK if brightness > 128 else WHITE
    origin = (label.left + style.padding, label.baseline)
    cv2.putText(image, label.text, origin, FONT, style.scale, text_color, style.weight, cv2.LINE_AA)


def _dashed_rectangle(image: np.ndarray, rectangle: _Rectangle, style: _Style) -> None:
    x1, y1, x2, y2 = rectangle
    line, dash = max(1, style.line // 2), 4 * style.line + 2
    cv2.rectangle(image, (x1, y1), (x2, y2), BLACK, line)  # visible on white, between the dashes
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
