"""Write a corrected copy of a COCO file."""

import json
import math
from itertools import count
from pathlib import Path
from typing import Any

from nanodet_jax.data.faults import Fault, ignore_fault
from nanodet_jax.data.file_search import FileSearch
from nanodet_jax.data.folder import Folder
from nanodet_jax.data.image_files import shown_size
from nanodet_jax.data.records import is_name
from nanodet_jax.data.sources.clip import OVERHANG, Box
from nanodet_jax.data.sources.coco import read_coco
from nanodet_jax.data.sources.coco_masks import box_and_area
from nanodet_jax.doctor.fix.boxes import (
    MISSING,
    RENUMBERED,
    REPEATED,
    RESIZED,
    TOO_SMALL,
    UNREADABLE,
    Changes,
    correct_box,
)
from nanodet_jax.doctor.fix.copy_image import is_unreadable, write_bytes
from nanodet_jax.progress import track

Item = dict[str, Any]  # an entry in a list of a COCO file
Sizes = dict[Any, tuple[int, int]]  # (height, width) by image id; 0 if unknown


def correct_coco(images: Path, annotations: Path, out: Path, follow_links: bool) -> Changes:
    """Write a corrected copy of the file `annotations` to `out`, and return what was changed.

    Entries that cannot be corrected, such as boxes of unknown classes, are copied as they are.

    Raises:
      UserError: if a file cannot be read or written.
    """
    content, changes = read_coco(annotations), Changes()
    search = FileSearch(Folder(images, follow_links))
    kept, sizes = _correct_images(content["images"], search, changes)
    known = _correct_annotations(content["annotations"], sizes, changes)
    # Uncorrected values may include NaN, which Python's json allows and strict json does not.
    text = json.dumps({**content, "images": kept, "annotations": known})
    write_bytes(out, text.encode())
    return changes


def _correct_images(
    items: list[Item], search: FileSearch, changes: Changes
) -> tuple[list[Item], Sizes]:
    """Return the images that exist, with unique ids and correct sizes."""
    kept, sizes = [], Sizes()
    unused = _unused_ids(items)
    for item in track(items, len(items), "correcting", "images"):
        id, name = item.get("id"), item.get("file_name")
        try:
            file = search.find(name, "", ignore_fault) if is_name(name) else None
        except Fault:  # the name points outside the folder
            file = None
        if file is None:
            changes[MISSING] += 1
            continue
        if type(id) is not int or id in sizes:
            changes[RENUMBERED] += 1
            id = next(unused)
        item = {**item, "id": id}
        changes[UNREADABLE] += is_unreadable(file)
        annotated = item.get("height") or 0, item.get("width") or 0
        size = shown_size(file)
        if size is not None and any(a and a != b for a, b in zip(annotated, size)):
            changes[RESIZED] += 1
            item |= {"height": size[0], "width": size[1]}
        sizes[id] = size or (0, 0)
        kept.append(item)
    return kept, sizes


def _correct_annotations(items: list[Item], sizes: Sizes, changes: Changes) -> list[Item]:
    kept: list[Item] = []
    unused, ids = _unused_ids(items), set()
    seen: set[tuple[Any, ...]] = set()
    for item in items:
        image, category = item.get("image_id"), item.get("category_id")
        if not isinstance(image, int) or image not in sizes:
            changes[MISSING] += 1
            continue
        box = _box_of(item)
        if box is not None:
            inverted = box[2] < box[0] or box[3] < box[1]
            if not inverted and _has_no_area(item):
                changes[TOO_SMALL] += 1  # training skips it, whatever its box is
                continue
            height, width = sizes[image]
            corrected = correct_box(
                box, (width, height), changes, smallest=(1, 1), tolerance=OVERHANG, move=False
            )
            if corrected is None:
                continue
            if corrected != box:
                item = _with_box(item, corrected)
            key = image, repr(category), corrected
            if key in seen:
                changes[REPEATED] += 1
                continue
            seen.add(key)
        id = item.get("id")
        if type(id) is not int or id in ids:
            changes[RENUMBERED] += 1
            item = {**item, "id": next(unused)}
        ids.add(item["id"])
        kept.append(item)
    return kept


def _box_of(item: Item) -> Box | None:
    """Return the box of an annotation, xyxy, or None if it has no valid one."""
    box = item.get("bbox")
    if not box and item.get("segmentation"):
        try:
            box, _ = box_and_area(item["segmentation"])
        except ValueError:
            return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return None
    x, y, w, h = box
    return x, y, x + w, y + h


def _with_box(item: Item, box: Box) -> Item:
    """Return an annotation with a different box. Update its area unless a segmentation gives it."""
    x1, y1, x2, y2 = box
    item = {**item, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    if not item.get("segmentation") or _has_no_area(item):
        item["area"] = (x2 - x1) * (y2 - y1)
    return item


def _has_no_area(item: Item) -> bool:
    area = item.get("area", 1)
    return _is_finite(area) and area <= 0


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _unused_ids(items: list[Item]) -> "count[int]":
    return count(max([0, *(i["id"] for i in items if type(i.get("id")) is int)]) + 1)
