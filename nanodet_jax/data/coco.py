"""COCO annotation files: read, checked, and turned into records.

A file is checked once, when it is opened, so that a fault stops a run in its first second and not
in its third hour; every error names the file and the annotation or image, and the way out.
"""

import json
import os
import reprlib
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from nanodet_jax.data.records import Category, Record, make_record
from nanodet_jax.errors import UserError

LARGEST = 1e18  # below the limit of int64; refuses inf and, as it compares with nothing, nan


class _Annotation(NamedTuple):
    id: int
    box: list[float]  # xywh, pixels of the original image
    label: int
    ignore: bool
    area: float


class CocoSource:
    """A folder of images and the json file that annotates them, in the order of image ids.

    As in the original: labels are the rank of the category id; boxes of no area, or narrower or
    lower than one pixel, are skipped; `iscrowd` and `ignore` mark regions to be ignored; images
    without a box are kept.

    Raises:
      UserError: on anything that is missing, inconsistent or no number, by file and id.
    """

    def __init__(self, images: Path, annotations: Path) -> None:
        content = read_coco(annotations)
        self.categories = read_categories(content, annotations)
        self._file = annotations
        infos = _read_images(content["images"], annotations)
        _check_files(images, infos, annotations)
        labels = {category.id: label for label, category in enumerate(self.categories)}
        kept: dict[int, list[_Annotation]] = {id: [] for id in infos}
        seen: set[int] = set()
        for position, item in enumerate(content["annotations"]):
            annotation = _read_annotation(item, position, infos, labels, annotations)
            if annotation.id in seen:
                raise UserError(f"{annotations}: annotation id {annotation.id} occurs twice")
            seen.add(annotation.id)
            if annotation.area > 0 and annotation.box[2] >= 1 and annotation.box[3] >= 1:
                kept[item["image_id"]].append(annotation)
        self._records = [_make_record(infos[id], images, kept[id]) for id in sorted(infos)]
        # Arrays, since an int that survives from the file keeps alive the memory around it.
        self._annotation_ids = [
            np.asarray([row.id for row in kept[id]], np.int64) for id in sorted(infos)
        ]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def num_boxes(self, index: int) -> int:
        """Boxes of image `index`, crowds included."""
        return len(self._records[index].boxes)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width as annotated, 0 where they are not."""
        return self._records[index].height, self._records[index].width

    def annotation_ids(self, index: int) -> np.ndarray:
        """Ids, in the file, of the boxes of `self[index]`: [n] int64."""
        return self._annotation_ids[index]

    def ground_truth(self) -> dict[str, Any]:
        """The file, read again: kept in memory, COCO's training set would take 2 GB."""
        return read_ground_truth(self._file)


def read_ground_truth(path: Path) -> dict[str, Any]:
    """Content of a COCO file as it is, but for `area` and `iscrowd` where they are left out.

    Raises:
      UserError: as `read_coco`.
    """
    content = read_coco(path)
    for item in content["annotations"]:
        item.setdefault("area", item["bbox"][2] * item["bbox"][3])
        item.setdefault("iscrowd", 0)
    return content


def read_coco(path: Path) -> dict[str, Any]:
    """Content of a COCO file, its three lists present and lists of objects.

    Raises:
      UserError: if the file is missing, broken json (with line and column), or another layout.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: annotation file is missing") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: broken json at {at}: {error.msg}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: no json text: {error}") from error
    for key in ("images", "annotations", "categories"):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(f"{path}: no COCO layout: needs a list of objects named {key!r}")
    return content


def read_categories(content: dict[str, Any], path: Path) -> tuple[Category, ...]:
    """Categories of a COCO file by ascending id: the place of each is its label.

    Raises:
      UserError: if there is none, one lacks id or name, or two share an id.
    """
    categories: dict[int, Category] = {}
    for position, item in enumerate(content["categories"]):
        id, name = item.get("id"), item.get("name")
        if not _is_id(id) or not isinstance(name, str):
            raise UserError(f"{path}: category {position} needs an integer 'id' and a 'name'")
        if id in categories:
            raise UserError(f"{path}: category id {id} occurs twice; give each its own")
        categories[id] = Category(id, name)
    if not categories:
        raise UserError(f"{path}: lists no categories; a detector needs at least one")
    return tuple(categories[id] for id in sorted(categories))


def _read_images(items: list[dict[str, Any]], path: Path) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for position, item in enumerate(items):
        id, name = item.get("id"), item.get("file_name")
        if not _is_id(id):
            raise UserError(f"{path}: image {position} of the list needs an integer 'id'")
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: image {id} needs a 'file_name'")
        if id in images:
            raise UserError(f"{path}: image id {id} occurs twice; give each image its own")
        for side in ("width", "height"):
            value = item.get(side) or 0
            if not _is_number(value) or value < 0 or value != int(value):
                found = reprlib.repr(value)
                raise UserError(f"{path}: image {id}: {side}={found} is no number of pixels")
        images[id] = item
    if not images:
        raise UserError(f"{path}: lists no images")
    return images


def _check_files(folder: Path, images: dict[int, dict[str, Any]], path: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: folder of images is missing (annotations: {path})")
    # One listing instead of a question per file: minutes become a second on a network drive.
    present = set(os.listdir(folder))
    missing = [
        image
        for image in images.values()
        if image["file_name"] not in present
        and not ("/" in image["file_name"] and (folder / image["file_name"]).is_file())
    ]
    if missing:
        first = f"{missing[0]['file_name']!r} of image {missing[0]['id']}"
        raise UserError(
            f"{folder}: {len(missing)} of {len(images)} images are missing, first {first}; "
            f"copy them there or take them out of {path}"
        )


def _read_annotation(
    item: dict[str, Any],
    position: int,
    images: Container[int],
    labels: dict[int, int],
    path: Path,
) -> _Annotation:
    id, image, category = item.get("id"), item.get("image_id"), item.get("category_id")
    if not _is_id(id):
        raise UserError(f"{path}: annotation {position} of the list needs an integer 'id'")
    where = f"{path}: annotation {id} (image {reprlib.repr(image)})"
    if type(image) is not int or image not in images:
        raise UserError(f"{where}: no such image id; add the image or delete the annotation")
    if type(category) is not int or category not in labels:
        found = reprlib.repr(category)
        raise UserError(f"{where}: unknown category id {found}; list it under 'categories'")
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        found = reprlib.repr(box)
        raise UserError(f"{where}: bbox={found} is not four finite numbers x, y, width, height")
    if box[2] < 0 or box[3] < 0:
        raise UserError(f"{where}: bbox={box} has negative width or height; correct or delete it")
    area = item.get("area", box[2] * box[3])
    if not _is_number(area):
        raise UserError(f"{where}: area={reprlib.repr(area)} is no finite number; leave it out")
    for flag in ("iscrowd", "ignore"):
        if item.get(flag) not in (0, 1, None):
            raise UserError(f"{where}: {flag}={reprlib.repr(item[flag])} is neither 0 nor 1")
    ignore = bool(item.get("iscrowd") or item.get("ignore"))
    return _Annotation(id, box, labels[category], ignore, area)


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and -LARGEST < value < LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def _make_record(info: dict[str, Any], folder: Path, rows: list[_Annotation]) -> Record:
    boxes = np.asarray([row.box for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    name = info["file_name"]
    return make_record(
        image_id=info["id"],
        name=name,
        image=folder / name,
        size=(int(info.get("height") or 0), int(info.get("width") or 0)),
        boxes=boxes,
        labels=[row.label for row in rows],
        ignore=[row.ignore for row in rows],
        areas=[row.area for row in rows],
    )
