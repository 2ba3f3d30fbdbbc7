"""Pascal VOC: a folder of images and one xml file of boxes for each.

Boxes become what the original's converter makes of them, but for what it only skips with a
warning: an inverted box, or a class that is not listed, is an error that names the xml.
"""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from nanodet_jax.data.records import Category, Record, coco_ground_truth, make_record
from nanodet_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class VocSource:
    """Split `train` or `val` of `root`, in the order of xml names; image and category ids from 1.

    Two layouts are known: `root/{train,val}/{images,annotations}`, and that of VOC2007,
    `root/{JPEGImages,Annotations,ImageSets/Main/{train,val}.txt}`, also inside `root/VOC2007`.
    `difficult` objects are ordinary ones, and boxes below one pixel are skipped.

    Raises:
      UserError: naming the xml (or folder) that is missing, broken, or not of `classes`.
    """

    def __init__(self, root: Path, split: str, classes: tuple[str, ...]) -> None:
        repeated = [name for name in classes if classes.count(name) > 1]
        if repeated:
            raise UserError(f"class {repeated[0]!r} is listed twice in config.data.classes")
        self.categories = tuple(Category(i, name) for i, name in enumerate(classes, start=1))
        labels = {name: label for label, name in enumerate(classes)}
        folder, files = _find_split(root, split)
        present = set(os.listdir(folder))
        self._records = [
            _make_record(file, image_id, folder, present, labels)
            for image_id, file in enumerate(files, start=1)
        ]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def num_boxes(self, index: int) -> int:
        """Boxes of image `index`."""
        return len(self._records[index].boxes)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width as annotated, 0 where they are not."""
        return self._records[index].height, self._records[index].width

    def ground_truth(self) -> dict[str, Any]:
        """The split in COCO's format."""
        return coco_ground_truth(self._records, self.categories)


def voc_classes(root: Path) -> tuple[str, ...]:
    """All class names that occur in the training split, sorted.

    Raises:
      UserError: if the split is missing, an xml is broken, or there is no object at all.
    """
    _, files = _find_split(root, "train")
    names = {name for file in files for name, _ in _read_xml(file).objects}
    if not names:
        raise UserError(f"{files[0].parent}: no object in any of {len(files)} xml files")
    return tuple(sorted(names))


def _find_split(root: Path, split: str) -> tuple[Path, list[Path]]:
    """Folder of the images, and the xml files of a split by name."""
    if not root.is_dir():
        raise UserError(f"{root}: folder is missing")
    if (root / split).is_dir():
        folder, annotations = root / split / "images", root / split / "annotations"
        _check_folders(folder, annotations)
        names = os.listdir(annotations)
        # Files that start with a dot are what macOS leaves in archives.
        stems = [name[:-4] for name in names if name.endswith(".xml") and name[0] != "."]
        origin = annotations
    else:
        base = root / "VOC2007" if (root / "VOC2007").is_dir() else root
        origin = base / "ImageSets" / "Main" / f"{split}.txt"
        if not origin.is_file():
            raise UserError(
                f"{root}: neither {split}/images and {split}/annotations nor "
                f"ImageSets/Main/{split}.txt (VOC2007) lies there"
            )
        folder, annotations = base / "JPEGImages", base / "Annotations"
        _check_folders(folder, annotations)
        lines = origin.read_text(encoding="utf-8", errors="replace").splitlines()
        stems = [line.split()[0] for line in lines if line.strip()]
        missing = sorted(set(stems) - {Path(name).stem for name in os.listdir(annotations)})
        if missing:
            raise UserError(f"{annotations / missing[0]}.xml: missing, but listed in {origin}")
    if not stems:
        raise UserError(f"{origin}: no xml files; each image needs one, if only without objects")
    return folder, [annotations / f"{stem}.xml" for stem in sorted(set(stems))]


def _check_folders(*folders: Path) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: folder is missing")


class _Xml(NamedTuple):
    filename: str
    size: tuple[int, int]  # height, width; 0 where not given
    objects: list[tuple[str, tuple[float, float, float, float]]]  # class, xmin, ymin, xmax, ymax


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds trees of files that declare no entities, which could expand to fill the memory."""

    def doctype(self, name: str, *_: Any) -> None:
        raise ValueError("declares a DOCTYPE, which is refused; delete that line")


def _read_xml(file: Path) -> _Xml:
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())
        root = ElementTree.fromstring(file.read_bytes(), parser)
        objects = []
        for number, item in enumerate(root.iterfind("object"), start=1):
            name = (item.findtext("name") or "").strip()
            if not name:
                raise ValueError(f"object {number} has no name")
            corners = [_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
            x1, y1, x2, y2 = corners
            if x2 < x1 or y2 < y1:
                raise ValueError(f"object {number} ({name}) has an inverted box {corners}")
            objects.append((name, (x1, y1, x2, y2)))
        sides = [_number(root, f"size/{side}", "0") for side in ("height", "width")]
        if min(sides) < 0 or any(side != int(side) for side in sides):
            raise ValueError(f"size (height, width) {sides} is no number of pixels")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: broken xml: {error}") from error
    except (ValueError, LookupError) as error:  # LookupError: an encoding nobody knows
        raise UserError(f"{file}: {error}") from error
    filename = (root.findtext("filename") or "").strip()
    return _Xml(filename, (int(sides[0]), int(sides[1])), objects)


def _number(element: ElementTree.Element, path: str, default: str = "") -> float:
    text = element.findtext(path, default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} is {text!r}, no finite number; correct it")
    return value


def _make_record(
    file: Path, image_id: int, folder: Path, present: set[str], labels: dict[str, int]
) -> Record:
    xml = _read_xml(file)
    height, width = xml.size
    boxes, found = [], []
    for name, (x1, y1, x2, y2) in xml.objects:
        if name not in labels:
            known = ", ".join(labels)
            raise UserError(f"{file}: class {name!r} is not among the classes: {known}")
        # As the original: a corner left of the image moves in without narrowing the box.
        w, h = min(x2 - x1, width or math.inf), min(y2 - y1, height or math.inf)
        x, y = max(x1, 0.0), max(y1, 0.0)
        if w >= 1 and h >= 1:
            boxes.append((x, y, x + w, y + h))
            found.append(labels[name])
    name = _find_image(file, xml.filename, folder, present)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    ignore = [False] * len(boxes)
    return make_record(image_id, name, folder / name, xml.size, boxes, found, ignore, areas)


def _find_image(file: Path, filename: str, folder: Path, present: set[str]) -> str:
    """<filename> if there is such an image, else one named as the xml is."""
    suffixes = [variant for suffix in SUFFIXES for variant in (suffix, suffix.upper())]
    for name in (filename, *(file.stem + suffix for suffix in suffixes)):
        if name in present:
            return name
    raise UserError(f"{file}: no image {filename!r} or {file.stem}.* in {folder}")
