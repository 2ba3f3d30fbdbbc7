"""YOLO's layout: a data.yaml, images, and a text file of boxes for each."""

import math
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanodet_jax.data.faults import Fault, Kind, OnFault, refuse
from nanodet_jax.data.folder import read_annotation
from nanodet_jax.data.image_files import shown_size
from nanodet_jax.data.records import Category, Record, coco_ground_truth, make_record
from nanodet_jax.data.sources.yolo_layout import Labelled, read_split

LABELS_LIMIT = 1 << 22  # bytes; a thousand polygons of two hundred points take 3.6 million
OVERHANG = 0.01  # beyond 0 and 1, where Ultralytics stops to take a number for a share
ROUNDING = 1e-3  # of shares with three digits: not worth a word
PIXEL_ROUNDING = 1e-2  # pixels: six digits, on an image of 10,000


class _Image(NamedTuple):
    at: Labelled
    labels: np.ndarray  # [n] int32
    boxes: np.ndarray  # [n, 4] float64 xyxy, shares of width and height


class YoloSource:
    """Split `train` or `val` of a data.yaml, in the order of image names; ids from 1.

    Labels are read at once, an image's header when its size is first needed: boxes are shares of
    it. A line is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, whose bounding
    box is taken. As in the original, a corner left of or above the image moves in without narrowing
    the box. Boxes below one pixel are skipped; an image whose header cannot be read has none.

    Raises:
      UserError: as `read_split`.
      Fault: as `on_fault` raises them, naming file and line; without it the first that there is.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        follow_links: bool = False,
        on_fault: OnFault = refuse,
    ) -> None:
        names, images = read_split(root, split, follow_links, on_fault)
        self.categories = tuple(Category(i, name) for i, name in enumerate(names, start=1))
        self._images: list[_Image] = []
        for image in images:
            try:
                self._images.append(_read_image(image, len(names), on_fault))
            except Fault as fault:
                on_fault(fault)
        self._sizes: list[tuple[int, int] | None] = [None] * len(self._images)
        self._on_fault = on_fault

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        at, labels, shares = self._images[index]
        height, width = self.image_size(index)
        boxes = shares * (width, height, width, height)
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = np.all(sides >= 1 - PIXEL_ROUNDING, axis=1)
        if width and height:
            for box, label in zip(boxes[~kept], labels[~kept]):
                found = f"box {box.round(2).tolist()} ({self.categories[label].name})"
                message = f"{at.labels}: {found}: below a pixel, and left out"
                self._on_fault(Fault(Kind.EMPTY, message, tolerated=True))
        return make_record(
            image_id=at.id,
            name=at.name,
            image=at.image,
            size=(height, width),
            boxes=boxes[kept],
            labels=labels[kept],
            ignore=np.zeros(kept.sum(), bool),
            areas=sides[kept].prod(axis=1),
        )

    def num_boxes(self, index: int) -> int:
        """Boxes of image `index`, those below one pixel included: no image is read to count."""
        return len(self._images[index].labels)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width as decoded, read from the header once; 0 if that cannot be."""
        size = self._sizes[index]
        if size is None:
            size = self._sizes[index] = shown_size(self._images[index].at.image) or (0, 0)
        return size

    def ground_truth(self) -> dict[str, Any]:
        """The split in COCO's format, for which the header of every image is read."""
        return coco_ground_truth((self[i] for i in range(len(self))), self.categories)


def _read_image(image: Labelled, num_classes: int, on_fault: OnFault) -> _Image:
    labels, boxes, file = [], [], str(image.labels)
    for number, line in enumerate(_read_lines(image.labels), start=1):
        if not line or line.isspace():
            continue
        where = f"{file}: line {number}"
        try:
            label, box = _read_line(line, num_classes, where)
        except Fault as fault:
            on_fault(fault)
            continue
        x1, y1, x2, y2 = box
        w, h = x2 - x1, y2 - y1
        if x1 < 0 or y1 < 0 or w > 1 or h > 1:
            x, y, w, h = max(x1, 0.0), max(y1, 0.0), min(w, 1.0), min(h, 1.0)
            box = x, y, x + w, y + h
            if max(x - x1, y - y1, x2 - x1 - w, y2 - y1 - h) > ROUNDING:
                found = f"box {_text((x1, y1, x2, y2))} leaves the image, and becomes {_text(box)}"
                on_fault(Fault(Kind.OUTSIDE, f"{where}: {found}", tolerated=True))
        labels.append(label)
        boxes.append(box)
    return _Image(image, np.array(labels, np.int32), np.array(boxes, np.float64).reshape(-1, 4))


def _read_lines(file: Path | None) -> list[bytes]:
    if file is None:
        return []
    content = read_annotation(file, LABELS_LIMIT, "the boxes of an image")
    return content.removeprefix(b"\xef\xbb\xbf").splitlines()


def _read_line(
    line: bytes, num_classes: int, where: str
) -> tuple[int, tuple[float, float, float, float]]:
    """Label and box, xyxy in shares of width and height.

    Raises:
      Fault: naming what is wrong; tolerated for a box without area.
    """

    def fault(kind: Kind, reason: str, tolerated: bool = False) -> Fault:
        shown = reprlib.repr(line.decode(errors="replace").strip())
        return Fault(kind, f"{where}: {shown} {reason}", tolerated=tolerated)

    try:
        label, *numbers = map(float, line.split())
    except ValueError as error:
        raise fault(Kind.NUMBERS, "is no line of numbers; correct or delete it") from error
    if not all(map(math.isfinite, (label, *numbers))):
        raise fault(Kind.NUMBERS, "has a number that is not finite; correct or delete it")
    is_polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if len(numbers) != 4 and not is_polygon:
        found = f"has {len(numbers)} numbers after the class"
        raise fault(Kind.NUMBERS, f"{found}; a box has 4, a polygon 6, 8, 10, ...")
    if not 0 <= label < num_classes or label != int(label):
        known = f"names of data.yaml has 0 to {num_classes - 1}"
        raise fault(Kind.CLASSES, f"is of class {label:g}; {known}")
    if min(numbers) < -OVERHANG or max(numbers) > 1 + OVERHANG:
        raise fault(Kind.OUTSIDE, "is outside 0 to 1; give shares of width and height, not pixels")
    if is_polygon:
        xs, ys = numbers[::2], numbers[1::2]
        box = min(xs), min(ys), max(xs), max(ys)
    else:
        cx, cy, w, h = numbers
        if w < 0 or h < 0:
            raise fault(Kind.INVERTED, "has negative width or height; correct or delete it")
        box = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    if box[0] == box[2] or box[1] == box[3]:
        raise fault(Kind.EMPTY, "has no area, and is left out", tolerated=True)
    return int(label), box


def _text(box: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{share:.4g}' for share in box)}]"
