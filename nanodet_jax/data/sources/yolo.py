"""Source for the YOLO format: a data.yaml, images, and one text file of boxes per image.

Format: https://docs.ultralytics.com/datasets/detect/
"""

import math
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanodet_jax.data.faults import Fault, FaultKind, OnFault, raise_fault
from nanodet_jax.data.folder import read_annotation
from nanodet_jax.data.image_files import shown_size
from nanodet_jax.data.records import Category, Record, coco_ground_truth, make_record
from nanodet_jax.data.sources.clip import Box, clip_box
from nanodet_jax.data.sources.yolo_layout import LabeledImage, read_split

LABELS_LIMIT = 1 << 22  # bytes; a thousand polygons of two hundred points take 3.6 million
OVERHANG = 0.01  # tolerated below 0 and above 1; Ultralytics rejects larger overhangs
MAX_FRACTION = 2.0  # larger numbers are assumed to be pixels
ROUNDING = 1e-3  # fraction of the image; a smaller overhang is due to rounding, and is not reported
PIXEL_ROUNDING = 1e-2  # pixels; rounding error of six-digit fractions of a side of 10,000 pixels


class _Annotated(NamedTuple):
    image: LabeledImage
    labels: np.ndarray  # [n] int32
    boxes: np.ndarray  # [n, 4] float64 xyxy, fractions of width and height


class YoloSource:
    """Split `train` or `val` of a data.yaml, ordered by image name; ids start at 1.

    Label files are read when the source is opened. The header of an image is read when its size is
    first needed, since boxes are fractions of it. A line is `class cx cy w h`, or
    `class x1 y1 x2 y2 x3 y3 ...` for a polygon, whose bounding box is used. Boxes that start
    left of or above the image, or are larger than it, are corrected by `clip_box`. Boxes smaller
    than one pixel are skipped. An image whose header cannot be read has no boxes.

    Raises:
      UserError: as in `read_split`.
      Fault: whatever `on_fault` raises; by default the first fault that is not tolerated.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        follow_links: bool = False,
        on_fault: OnFault = raise_fault,
    ) -> None:
        names, origin, images = read_split(root, split, follow_links, on_fault)
        self.categories = tuple(Category(i, name) for i, name in enumerate(names, start=1))
        self._images: list[_Annotated] = []
        for image in images:
            try:
                self._images.append(_read_labels(image, len(names), origin, on_fault))
            except Fault as fault:
                on_fault(fault)
        self._sizes: list[tuple[int, int] | None] = [None] * len(self._images)
        self._on_fault = on_fault

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        image, labels, fractions = self._images[index]
        height, width = self.image_size(index)
        boxes = fractions * (width, height, width, height)
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = np.all(sides >= 1 - PIXEL_ROUNDING, axis=1)
        if width and height:
            for box, label in zip(boxes[~kept], labels[~kept]):
                found = f"box {box.round(2).tolist()} ({self.categories[label].name})"
                message = f"{image.labels}: {found} is smaller than one pixel and is skipped"
                self._on_fault(Fault(FaultKind.EMPTY, message, tolerated=True))
        return make_record(
            image_id=image.id,
            name=image.name,
            image=image.file,
            size=(height, width),
            boxes=boxes[kept],
            labels=labels[kept],
            ignore=np.zeros(kept.sum(), bool),
            areas=sides[kept].prod(axis=1),
        )

    def name(self, index: int) -> str:
        """Return the name of image `index`."""
        return self._images[index].image.name

    def num_boxes(self, index: int) -> int:
        """Return the number of boxes of image `index`, without reading the image.

        Boxes smaller than one pixel are included.
        """
        return len(self._images[index].labels)

    def image_size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) after decoding; (0, 0) if the header cannot be read."""
        size = self._sizes[index]
        if size is None:
            size = self._sizes[index] = shown_size(self._images[index].image.file) or (0, 0)
        return size

    def ground_truth(self) -> dict[str, Any]:
        """Return the split in COCO format. This reads the header of every image."""
        return coco_ground_truth((self[i] for i in range(len(self))), self.categories)


def _read_labels(
    image: LabeledImage, num_classes: int, names_origin: str, on_fault: OnFault
) -> _Annotated:
    labels, boxes, file = [], [], str(image.labels)
    for number, line in enumerate(_read_lines(image.labels), start=1):
        if not line or line.isspace():
            continue
        where = f"{file}: line {number}"
        try:
            label, box = _read_line(line, num_classes, names_origin, where)
        except Fault as fault:
            on_fault(fault)
            continue
        x1, y1, x2, y2 = box
        if x1 < 0 or y1 < 0 or x2 - x1 > 1 or y2 - y1 > 1:
            x, y, w, h = clip_box((x1, y1, x2 - x1, y2 - y1), 1.0, 1.0)
            box = x, y, x + w, y + h
            if max(x - x1, y - y1, x2 - x1 - w, y2 - y1 - h) > ROUNDING:
                before, after = _format_box((x1, y1, x2, y2)), _format_box(box)
                found = f"box {before} extends beyond the image; moved to {after}"
                on_fault(Fault(FaultKind.OUTSIDE, f"{where}: {found}", tolerated=True))
        labels.append(label)
        boxes.append(box)
    return _Annotated(image, np.array(labels, np.int32), np.array(boxes, np.float64).reshape(-1, 4))


def _read_lines(file: Path | None) -> list[bytes]:
    if file is None:
        return []
    content = read_annotation(file, LABELS_LIMIT, "the boxes of an image")
    return content.removeprefix(b"\xef\xbb\xbf").splitlines()


def _read_line(line: bytes, num_classes: int, names_origin: str, where: str) -> tuple[int, Box]:
    """Return the label and the box of a line, xyxy in fractions of width and height.

    Raises:
      Fault: naming the error. It is tolerated if the box has no area.
    """

    def fault(kind: FaultKind, reason: str, tolerated: bool = False) -> Fault:
        shown = reprlib.repr(line.decode(errors="replace").strip())
        return Fault(kind, f"{where}: {shown} {reason}", tolerated=tolerated)

    try:
        label, *numbers = map(float, line.split())
    except ValueError as error:
        raise fault(FaultKind.NUMBERS, "is not a line of numbers; correct or delete it") from error
    if not all(map(math.isfinite, (label, *numbers))):
        found = "has a number that is not finite"
        raise fault(FaultKind.NUMBERS, f"{found}; correct or delete it")
    is_polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if len(numbers) != 4 and not is_polygon:
        found = f"has {len(numbers)} numbers after the class"
        raise fault(FaultKind.NUMBERS, f"{found}; a box has 4, a polygon 6, 8, 10, ...")
    if not 0 <= label < num_classes or label != int(label):
        known = f"{names_origin} defines classes 0 to {num_classes - 1}"
        raise fault(FaultKind.CLASSES, f"has unknown class {label:g}; {known}")
    if not is_polygon and min(numbers[2:]) < 0:
        found = "has a negative width or height"
        raise fault(FaultKind.INVERTED, f"{found}; correct or delete it")
    if min(numbers) < -OVERHANG or max(numbers) > 1 + OVERHANG:
        in_pixels = max(map(abs, numbers)) > MAX_FRACTION
        kind = FaultKind.NOT_FRACTIONS if in_pixels else FaultKind.OUTSIDE
        raise fault(
            kind, "has numbers outside 0 to 1; use fractions of width and height, not pixels"
        )
    if is_polygon:
        xs, ys = numbers[::2], numbers[1::2]
        box = min(xs), min(ys), max(xs), max(ys)
    else:
        cx, cy, w, h = numbers
        box = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    if box[0] == box[2] or box[1] == box[3]:
        raise fault(FaultKind.EMPTY, "has no area and is skipped", tolerated=True)
    return int(label), box


def _format_box(box: Box) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in box)}]"
