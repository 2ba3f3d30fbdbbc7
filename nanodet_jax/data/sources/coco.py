"""COCO annotation files: read, checked, and turned into records.

A file is checked once, when it is opened, so that a fault stops a run in its first second and not
in its third hour; every error names the file and the annotation or image, and the way out.
"""

import json
import reprlib
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from nanodet_jax.data.faults import Fault, Kind, OnFault, refuse
from nanodet_jax.data.folder import Folder
from nanodet_jax.data.json_text import loads_unique
from nanodet_jax.data.records import Category, Record, is_name, make_record
from nanodet_jax.errors import UserError
from nanodet_jax.files import open_regular

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
      UserError: on a file that is missing or of another layout, by its name.
      Fault: as `on_fault` raises them, by file and id; without it the first that there is.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        *,
        follow_links: bool = False,
        on_fault: OnFault = refuse,
    ) -> None:
        content = read_coco(annotations)
        self.categories = read_categories(content, annotations)
        self._file = annotations
        infos = _read_images(content["images"], annotations, on_fault)
        if not images.is_dir():
            raise UserError(f"{images}: folder of images is missing (annotations: {annotations})")
        files = _find_files(Folder(images, follow_links), infos, annotations, on_fault)
        labels = {category.id: label for label, category in enumerate(self.categories)}
        kept: dict[int, list[_Annotation]] = {id: [] for id in files}
        seen: set[int] = set()
        for position, item in enumerate(content["annotations"]):
            try:
                annotation = _read_annotation(item, position, infos, labels, annotations)
                if annotation.id in seen:
                    found = f"annotation id {annotation.id} occurs twice"
                    raise Fault(Kind.IDS, f"{annotations}: {found}")
                seen.add(annotation.id)
                _check_area(item, annotation, annotations)
            except Fault as fault:
                on_fault(fault)
                continue
            if item["image_id"] in files:
                kept[item["image_id"]].append(annotation)
        ids = sorted(files)
        self._records = [_make_record(infos[id], files[id], kept[id]) for id in ids]
        # Arrays, since an int that survives from the file keeps alive the memory around it.
        self._annotation_ids = [np.asarray([row.id for row in kept[id]], np.int64) for id in ids]

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

    Keys that occur twice are not looked for again: the file was checked when it was opened.

    Raises:
      UserError: as `read_coco`.
    """
    content = read_coco(path, loads=json.loads)
    for item in content["annotations"]:
        item.setdefault("area", item["bbox"][2] * item["bbox"][3])
        item.setdefault("iscrowd", 0)
    return content


def read_coco(path: Path, loads: Callable[[str], Any] = loads_unique) -> dict[str, Any]:
    """Content of a COCO file, its three lists present and lists of objects.

    Raises:
      UserError: if the file is missing, no regular file, broken json (with line and column), has a
        key twice in an object, or is of another layout.
    """
    try:
        content = loads(_read_text(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: broken json at {at}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of 5,000 digits, depth
        raise UserError(f"{path}: no json text: {error}") from error
    for key in ("images", "annotations", "categories"):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(f"{path}: no COCO layout: needs a list of objects named {key!r}")
    return content


def _read_text(path: Path) -> str:
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise UserError("annotation file is missing") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    with file:
        return file.read().decode("utf-8-sig")


def read_categories(content: dict[str, Any], path: Path) -> tuple[Category, ...]:
    """Categories of a COCO file by ascending id: the place of each is its label.

    Raises:
      UserError: if there is none, one lacks id or name, or two share an id.
    """
    categories: dict[int, Category] = {}
    for position, item in enumerate(content["categories"]):
        id, name = item.get("id"), item.get("name")
        if not _is_id(id) or not is_name(name):
            raise UserError(f"{path}: category {position} needs an integer 'id' and a 'name'")
        if id in categories:
            raise UserError(f"{path}: category id {id} occurs twice; give each its own")
        categories[id] = Category(id, name)
    if not categories:
        raise UserError(f"{path}: lists no categories; a detector needs at least one")
    return tuple(categories[id] for id in sorted(categories))


def _read_images(
    items: list[dict[str, Any]], path: Path, on_fault: OnFault
) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for position, item in enumerate(items):
        try:
            id = _read_image(item, position, path)
            if id in images:
                message = f"{path}: image id {id} occurs twice; give each image its own"
                raise Fault(Kind.IDS, message)
            images[id] = item
        except Fault as fault:
            on_fault(fault)
    if not images:
        raise UserError(f"{path}: lists no images")
    return images


def _read_image(item: dict[str, Any], position: int, path: Path) -> int:
    """The id of an image, everything about it checked."""
    id, name = item.get("id"), item.get("file_name")
    if not _is_id(id):
        message = f"{path}: image {position} of the list needs an integer 'id'"
        raise Fault(Kind.IDS, message)
    if not is_name(name):
        raise Fault(Kind.MISSING, f"{path}: image {id} needs a 'file_name'")
    for side in ("width", "height"):
        value = item.get(side) or 0
        if not _is_number(value) or value < 0 or value != int(value):
            found = f"{side}={reprlib.repr(value)} is no number of pixels"
            raise Fault(Kind.NUMBERS, f"{path}: image {id}: {found}")
    return id


def _find_files(
    folder: Folder, images: dict[int, dict[str, Any]], path: Path, on_fault: OnFault
) -> dict[int, Path]:
    """Files of the images by id, without those that are missing."""
    files: dict[int, Path] = {}
    missing = []
    for id, image in images.items():
        try:
            file = folder.find(image["file_name"], f"{path}: image {id}")
        except Fault as fault:
            on_fault(fault)
            continue
        if file is None:
            missing.append(f"{image['file_name']!r} of image {id}")
        else:
            files[id] = file
    for place, entry in enumerate(missing):
        counts = f"{len(missing)} of {len(images)} images are missing"
        found = f"{counts}, {'then' if place else 'first'} {entry}"
        way_out = f"copy them there or take them out of {path}"
        on_fault(Fault(Kind.MISSING, f"{folder.path}: {found}; {way_out}"))
    return files


def _read_annotation(
    item: dict[str, Any],
    position: int,
    images: Container[int],
    labels: dict[int, int],
    path: Path,
) -> _Annotation:
    id, image, category = item.get("id"), item.get("image_id"), item.get("category_id")
    if not _is_id(id):
        message = f"{path}: annotation {position} of the list needs an integer 'id'"
        raise Fault(Kind.IDS, message)

    def fault(kind: Kind, reason: str) -> Fault:
        return Fault(kind, f"{path}: annotation {id} (image {reprlib.repr(image)}): {reason}")

    if type(image) is not int or image not in images:
        raise fault(Kind.IDS, "no such image id; add the image or delete the annotation")
    if type(category) is not int or category not in labels:
        found = reprlib.repr(category)
        raise fault(Kind.CLASSES, f"unknown category id {found}; list it under 'categories'")
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        found = reprlib.repr(box)
        raise fault(Kind.NUMBERS, f"bbox={found} is not four finite numbers x, y, width, height")
    if box[2] < 0 or box[3] < 0:
        raise fault(Kind.INVERTED, f"bbox={box} has negative width or height; correct or delete it")
    area = item.get("area", box[2] * box[3])
    if not _is_number(area):
        found = reprlib.repr(area)
        raise fault(Kind.NUMBERS, f"area={found} is no finite number; leave it out")
    for flag in ("iscrowd", "ignore"):
        if item.get(flag) not in (0, 1, None):
            found = reprlib.repr(item[flag])
            raise fault(Kind.NUMBERS, f"{flag}={found} is neither 0 nor 1")
    ignore = bool(item.get("iscrowd") or item.get("ignore"))
    return _Annotation(id, box, labels[category], ignore, area)


def _check_area(item: dict[str, Any], annotation: _Annotation, path: Path) -> None:
    _, _, width, height = annotation.box
    if annotation.area <= 0 or width < 1 or height < 1:
        where = f"{path}: annotation {annotation.id} (image {item['image_id']})"
        found = f"bbox={annotation.box}, area={annotation.area}: below a pixel, and left out"
        raise Fault(Kind.EMPTY, f"{where}: {found}", tolerated=True)


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and -LARGEST < value < LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def _make_record(info: dict[str, Any], file: Path, rows: list[_Annotation]) -> Record:
    boxes = np.asarray([row.box for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return make_record(
        image_id=info["id"],
        name=info["file_name"],
        image=file,
        size=(int(info.get("height") or 0), int(info.get("width") or 0)),
        boxes=boxes,
        labels=[row.label for row in rows],
        ignore=[row.ignore for row in rows],
        areas=[row.area for row in rows],
    )
