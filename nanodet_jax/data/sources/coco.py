"""Source for the COCO format: a folder of images and one json file of annotations.

Format: https://cocodataset.org/#format-data

The file is checked completely when it is opened, so that a fault stops a run before training.
Every error names the file, the image or annotation, and the fix.
"""

import json
import reprlib
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from nanodet_jax.data.faults import Fault, FaultKind, OnFault, raise_fault
from nanodet_jax.data.file_search import FileSearch
from nanodet_jax.data.folder import Folder
from nanodet_jax.data.json_text import loads_unique
from nanodet_jax.data.records import Category, Record, is_name, make_record
from nanodet_jax.data.sources.clip import boxes_outside
from nanodet_jax.data.sources.coco_masks import box_and_area
from nanodet_jax.data.sources.in_memory import InMemorySource
from nanodet_jax.errors import UserError
from nanodet_jax.files import open_regular

MAX_NUMBER = 1e18  # below the limit of int64; comparisons with it also exclude inf and nan


class _Annotation(NamedTuple):
    id: int
    box: list[float]  # xywh, pixels of the original image
    label: int
    ignore: bool
    area: float


class CocoSource(InMemorySource):
    """Images in a folder and their annotations in one json file, ordered by image id.

    The rules follow the original. The label of a category is its index in the list sorted by id.
    Boxes are skipped if they have no area, or a side of less than one pixel. `iscrowd` and `ignore`
    mark ignore regions. Images without boxes are kept.

    Raises:
      UserError: naming the file, if it is missing or does not have this format.
      Fault: whatever `on_fault` raises; by default the first fault that is not tolerated.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        *,
        follow_links: bool = False,
        on_fault: OnFault = raise_fault,
    ) -> None:
        self._file = annotations
        content = read_coco(annotations)
        categories = read_categories(content, annotations, on_fault)
        infos, rejected = _read_images(content["images"], annotations, on_fault)
        if not images.is_dir():
            raise UserError(f"{images}: folder of images is missing (annotations: {annotations})")
        files = _find_files(Folder(images, follow_links), infos, annotations, on_fault)
        labels = {category.id: label for label, category in enumerate(categories)}
        kept: dict[int, list[_Annotation]] = {id: [] for id in files}
        seen: set[int] = set()
        listed = infos.keys() | rejected
        for position, item in enumerate(content["annotations"]):
            try:
                annotation = _read_annotation(item, position, listed, labels, annotations)
                if annotation.id in seen:
                    found = f"annotation id {annotation.id} occurs twice; make ids unique"
                    raise Fault(FaultKind.IDS, f"{annotations}: {found}")
                seen.add(annotation.id)
                _check_area(item, annotation, annotations)
                if not item.get("bbox"):
                    where = f"{annotations}: annotation {annotation.id}"
                    derived = f"{where}: bbox={annotation.box} is derived from its segmentation"
                    on_fault(Fault(FaultKind.DERIVED, derived, tolerated=True))
            except Fault as fault:
                on_fault(fault)
                continue
            if item["image_id"] in files:
                kept[item["image_id"]].append(annotation)
        ids = sorted(files)
        records = [_make_record(infos[id], files[id], kept[id]) for id in ids]
        super().__init__(categories, records)
        for record in records:
            # Training clips boxes after augmentation, as the original does.
            if record.width and record.height and _may_leave(kept[record.image_id], record):
                for outside in boxes_outside(record):
                    on_fault(outside)
        # Use arrays: each int object that is kept would keep a whole block of memory allocated.
        self._annotation_ids = [np.asarray([row.id for row in kept[id]], np.int64) for id in ids]

    def annotation_ids(self, index: int) -> np.ndarray:
        """Return the annotation ids of the boxes of `self[index]`: [n] int64."""
        return self._annotation_ids[index]

    def ground_truth(self) -> dict[str, Any]:
        """Return the content of the file, which is read again.

        Kept in memory, the content of COCO's train2017 would take 2 GB.
        """
        return read_ground_truth(self._file)


def read_ground_truth(path: Path) -> dict[str, Any]:
    """Read a COCO file, and fill in `bbox`, `area` and `iscrowd` where they are missing.

    Repeated keys are not detected here: the file was checked when it was opened.

    Raises:
      UserError: as in `read_coco`.
    """
    content = read_coco(path, loads=json.loads)
    for item in content["annotations"]:
        if not item.get("bbox") and item.get("segmentation"):
            item["bbox"], area = box_and_area(item["segmentation"])
            item.setdefault("area", area)
        item.setdefault("area", item["bbox"][2] * item["bbox"][3])
        item.setdefault("iscrowd", 0)
    return content


def read_coco(path: Path, loads: Callable[[str], Any] = loads_unique) -> dict[str, Any]:
    """Read a COCO file, and check its lists `images`, `annotations` and `categories`.

    The lists must contain only json objects.

    Raises:
      UserError: if the file is missing, not a regular file or invalid json (with line and column),
        if an object has a key twice, or if the file is not in COCO format.
    """
    try:
        content = loads(_read_text(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: invalid json at {at}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, long numbers, deep nesting
        raise UserError(f"{path}: not json text: {error}") from error
    for key in ("images", "annotations", "categories"):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(f"{path}: not in COCO format: needs a list of objects named {key!r}")
    return content


def _read_text(path: Path) -> str:
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise UserError(
            "annotation file is missing; set config.data.root to the folder of the dataset, or "
            "correct the path of the annotation file in config.data"
        ) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    with file:
        return file.read().decode("utf-8-sig")


def read_categories(
    content: dict[str, Any], path: Path, on_fault: OnFault = raise_fault
) -> tuple[Category, ...]:
    """Return the categories of a COCO file, sorted by id. The index of a category is its label.

    Category 0 is left out if it has no annotations and is the `supercategory` of another
    category, as in Roboflow exports.

    Raises:
      UserError: if there are no categories, a category lacks an id or a name, or two share an id.
    """
    categories: dict[int, Category] = {}
    for position, item in enumerate(content["categories"]):
        id, name = item.get("id"), item.get("name")
        if not _is_id(id) or not is_name(name):
            where = f"{path}: category {position} in the list"
            raise UserError(f"{where} needs an integer 'id' and a 'name'")
        if id in categories:
            raise UserError(f"{path}: category id {id} occurs twice; make ids unique")
        categories[id] = Category(id, name)
    if not categories:
        raise UserError(f"{path}: lists no categories; a detector needs at least one")
    above = categories.get(0)
    if above is not None and _is_super_category(above, content):
        found = f"{path}: category 0, {above.name!r}, is a super-category of others"
        on_fault(Fault(FaultKind.SUPER_CATEGORY, found, tolerated=True))
        del categories[0]
    return tuple(categories[id] for id in sorted(categories))


def _is_super_category(category: Category, content: dict[str, Any]) -> bool:
    others = (item for item in content["categories"] if item["id"] != category.id)
    if not any(item.get("supercategory") == category.name for item in others):
        return False
    return not any(item.get("category_id") == category.id for item in content["annotations"])


def _read_images(
    items: list[dict[str, Any]], path: Path, on_fault: OnFault
) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """Return the images by id, and the ids of images whose entries are faulty."""
    images: dict[int, dict[str, Any]] = {}
    rejected: set[int] = set()
    for position, item in enumerate(items):
        try:
            id = _read_image_id(item, position, path)
            if id in images:
                message = f"{path}: image id {id} occurs twice; make ids unique"
                raise Fault(FaultKind.IDS, message)
            images[id] = item
        except Fault as fault:
            on_fault(fault)
            if _is_id(item.get("id")):
                rejected.add(item["id"])
    if not images:
        raise UserError(f"{path}: lists no images")
    return images, rejected


def _read_image_id(item: dict[str, Any], position: int, path: Path) -> int:
    """Return the id of an image, after checking all its fields."""
    id, name = item.get("id"), item.get("file_name")
    if not _is_id(id):
        message = f"{path}: image {position} in the list needs an integer 'id'"
        raise Fault(FaultKind.IDS, message)
    if not is_name(name):
        raise Fault(FaultKind.MISSING, f"{path}: image {id} needs a 'file_name'")
    for side in ("width", "height"):
        value = item.get(side) or 0
        if not _is_number(value) or value < 0 or value != int(value):
            found = f"{side}={reprlib.repr(value)} is not a whole number of pixels"
            raise Fault(FaultKind.NUMBERS, f"{path}: image {id}: {found}")
    return id


def _find_files(
    folder: Folder, images: dict[int, dict[str, Any]], path: Path, on_fault: OnFault
) -> dict[int, Path]:
    """Return the existing image files, by image id."""
    files: dict[int, Path] = {}
    search = FileSearch(folder)
    missing = []
    for id, image in images.items():
        try:
            file = search.find(image["file_name"], f"{path}: image {id}", on_fault)
        except Fault as fault:
            on_fault(fault)
            continue
        if file is None:
            missing.append(f"{image['file_name']!r} (image {id})")
        else:
            files[id] = file
    for entry in missing:
        found = f"{len(missing)} of {len(images)} images are missing, such as {entry}"
        fix = f"copy them to this folder or remove them from {path}"
        on_fault(Fault(FaultKind.MISSING, f"{folder.path}: {found}; {fix}"))
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
        message = f"{path}: annotation {position} in the list needs an integer 'id'"
        raise Fault(FaultKind.IDS, message)

    def fault(kind: FaultKind, reason: str) -> Fault:
        return Fault(kind, f"{path}: annotation {id} (image {reprlib.repr(image)}): {reason}")

    if type(image) is not int or image not in images:
        raise fault(FaultKind.IDS, "unknown image id; add the image or delete the annotation")
    if type(category) is not int or category not in labels:
        found = reprlib.repr(category)
        raise fault(FaultKind.CLASSES, f"unknown category id {found}; add it to 'categories'")
    box, derived_area = item.get("bbox"), None
    if not box and item.get("segmentation"):
        try:
            box, derived_area = box_and_area(item["segmentation"])
        except ValueError as error:
            raise fault(FaultKind.NUMBERS, f"has no bbox, and {error}; add a bbox") from error
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        found = f"bbox={reprlib.repr(box)}"
        raise fault(FaultKind.NUMBERS, f"{found} is not four finite numbers x, y, width, height")
    if box[2] < 0 or box[3] < 0:
        found = f"bbox={box} has a negative width or height"
        raise fault(FaultKind.INVERTED, f"{found}; correct or delete it")
    area = item.get("area", box[2] * box[3] if derived_area is None else derived_area)
    if not _is_number(area):
        found = f"area={reprlib.repr(area)} is not a finite number"
        raise fault(FaultKind.NUMBERS, f"{found}; correct it or leave it out")
    for flag in ("iscrowd", "ignore"):
        if item.get(flag) not in (0, 1, None):
            raise fault(FaultKind.NUMBERS, f"{flag}={reprlib.repr(item[flag])} must be 0 or 1")
    ignore = bool(item.get("iscrowd") or item.get("ignore"))
    return _Annotation(id, box, labels[category], ignore, area)


def _check_area(item: dict[str, Any], annotation: _Annotation, path: Path) -> None:
    _, _, width, height = annotation.box
    if annotation.area <= 0 or width < 1 or height < 1:
        where = f"{path}: annotation {annotation.id} (image {item['image_id']})"
        found = f"bbox={annotation.box}, area={annotation.area}"
        message = f"{where}: {found} is smaller than one pixel and is skipped"
        raise Fault(FaultKind.EMPTY, message, tolerated=True)


def _may_leave(rows: list[_Annotation], record: Record) -> bool:
    """Return whether any box extends beyond the image. Arrays would be slower for few boxes."""
    width, height = record.width, record.height
    return any(
        x < 0 or y < 0 or x + w > width or y + h > height for x, y, w, h in (r.box for r in rows)
    )


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and -MAX_NUMBER < value < MAX_NUMBER


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -MAX_NUMBER < value < MAX_NUMBER


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
