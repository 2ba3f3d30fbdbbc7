"""Pascal VOC: a folder of images and one xml file of boxes for each.

Boxes become what the original's converter makes of them, but for what it only skips with a
warning: an inverted box, or a class that is not listed, is an error that names the xml.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from nanodet_jax.data.faults import Fault, Kind, OnFault, refuse
from nanodet_jax.data.folder import Folder, read_annotation
from nanodet_jax.data.image_files import SUFFIXES
from nanodet_jax.data.records import Category, Record, coco_ground_truth, make_record
from nanodet_jax.errors import UserError

XML_LIMIT = 16 << 20  # bytes; a thousand objects take 300 thousand


class VocSource:
    """Split `train` or `val` of `root`, in the order of xml names; image and category ids from 1.

    Two layouts are known: `root/{train,val}/{images,annotations}`, and that of VOC2007,
    `root/{JPEGImages,Annotations,ImageSets/Main/{train,val}.txt}`, also inside `root/VOC2007`.
    `difficult` objects are ordinary ones, and boxes below one pixel are skipped.

    Raises:
      UserError: naming the folder or list that is missing or cannot be used.
      Fault: as `on_fault` raises them, naming the xml; without it the first that there is.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        classes: tuple[str, ...],
        *,
        follow_links: bool = False,
        on_fault: OnFault = refuse,
    ) -> None:
        repeated = [name for name in classes if classes.count(name) > 1]
        if repeated:
            raise UserError(f"class {repeated[0]!r} is listed twice in config.data.classes")
        self.categories = tuple(Category(i, name) for i, name in enumerate(classes, start=1))
        labels = {name: label for label, name in enumerate(classes)}
        images, annotations, names = _find_split(root, split, follow_links, on_fault)
        self._records = []
        for image_id, name in enumerate(names, start=1):
            try:
                record = _make_record(name, image_id, images, annotations, labels, on_fault)
            except Fault as fault:
                on_fault(fault)
                continue
            self._records.append(record)

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


def voc_classes(
    root: Path, *, follow_links: bool = False, on_fault: OnFault = refuse
) -> tuple[str, ...]:
    """All class names that occur in the training split, sorted.

    Raises:
      UserError: if the split is missing, or there is no object at all.
      Fault: as `on_fault` raises them, naming the xml.
    """
    _, annotations, files = _find_split(root, "train", follow_links, on_fault)
    names: set[str] = set()
    for file in files:
        try:
            names |= {name for name, _ in _read_xml(file, annotations, on_fault).objects}
        except Fault as fault:
            on_fault(fault)
    if not names:
        raise UserError(f"{annotations.path}: no object in any of {len(files)} xml files")
    return tuple(sorted(names))


def _find_split(
    root: Path, split: str, follow_links: bool, on_fault: OnFault
) -> tuple[Folder, Folder, list[str]]:
    """Folder of the images, that of the xml files, and the names of the split's xml files."""
    if not root.is_dir():
        raise UserError(f"{root}: folder is missing")
    if (root / split).is_dir():
        images = Folder(root / split / "images", follow_links)
        annotations = Folder(root / split / "annotations", follow_links)
        # Files that start with a dot are what macOS leaves in archives.
        names = [n for n in annotations.names() if n.endswith(".xml") and n[0] != "."]
        origin = annotations.path
    else:
        base = root / "VOC2007" if (root / "VOC2007").is_dir() else root
        origin = base / "ImageSets" / "Main" / f"{split}.txt"
        if not origin.is_file():
            raise UserError(
                f"{root}: neither {split}/images and {split}/annotations nor "
                f"ImageSets/Main/{split}.txt (VOC2007) lies there"
            )
        images = Folder(base / "JPEGImages", follow_links)
        annotations = Folder(base / "Annotations", follow_links)
        lines = origin.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [f"{line.split()[0]}.xml" for line in lines if line.strip()]
        missing = sorted(name for name in names if name not in annotations)
        if missing:
            # Names in a listing have no folders, so nothing outside of it is ever read.
            message = f"{annotations.path / missing[0]}: missing, but listed in {origin}"
            on_fault(Fault(Kind.MISSING, f"{message}, first of {len(missing)}"))
            names = [name for name in names if name in annotations]
    if not names:
        raise UserError(f"{origin}: no xml files; each image needs one, if only without objects")
    return images, annotations, sorted(set(names))


class _Xml(NamedTuple):
    filename: str
    size: tuple[int, int]  # height, width; 0 where not given
    objects: list[tuple[str, tuple[float, float, float, float]]]  # class, xmin, ymin, xmax, ymax


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds trees of files that declare no entities, which could expand to fill the memory."""

    def doctype(self, name: str, *_: Any) -> None:
        raise ValueError("declares a DOCTYPE, which is refused; delete that line")


def _read_xml(name: str, annotations: Folder, on_fault: OnFault) -> _Xml:
    file = annotations.path / name
    annotations.find(name, str(file))  # refuses links out of the folder
    content = read_annotation(file, XML_LIMIT, "the boxes of an image")
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
        sides = [_number(root, f"size/{side}", "0") for side in ("height", "width")]
        if min(sides) < 0 or any(side != int(side) for side in sides):
            raise ValueError(f"size (height, width) {sides} is no number of pixels")
    except ElementTree.ParseError as error:
        raise Fault(Kind.FILE, f"{file}: broken xml: {error}") from error
    except (ValueError, LookupError) as error:  # LookupError: an encoding nobody knows
        raise Fault(Kind.FILE, f"{file}: {error}") from error
    objects = []
    for number, item in enumerate(root.iterfind("object"), start=1):
        try:
            objects.append(_read_object(item, f"{file}: object {number}"))
        except Fault as fault:
            on_fault(fault)
    filename = (root.findtext("filename") or "").strip()
    return _Xml(filename, (int(sides[0]), int(sides[1])), objects)


def _read_object(
    item: ElementTree.Element, where: str
) -> tuple[str, tuple[float, float, float, float]]:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise Fault(Kind.CLASSES, f"{where} has no name")
    try:
        corners = [_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError as error:
        raise Fault(Kind.NUMBERS, f"{where} ({name}): {error}") from error
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        raise Fault(Kind.INVERTED, f"{where} ({name}) has an inverted box {corners}")
    return name, (x1, y1, x2, y2)


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
    file: str,
    image_id: int,
    images: Folder,
    annotations: Folder,
    labels: dict[str, int],
    on_fault: OnFault,
) -> Record:
    xml = _read_xml(file, annotations, on_fault)
    where = annotations.path / file
    height, width = xml.size
    boxes, found = [], []
    for class_name, (x1, y1, x2, y2) in xml.objects:
        box = f"{where}: box {[x1, y1, x2, y2]} ({class_name})"
        if class_name not in labels:
            known = f"class {class_name!r} is not among the classes: {', '.join(labels)}"
            on_fault(Fault(Kind.CLASSES, f"{where}: {known}"))
            continue
        # As the original: a corner left of the image moves in without narrowing the box.
        w, h = min(x2 - x1, width or math.inf), min(y2 - y1, height or math.inf)
        x, y = max(x1, 0.0), max(y1, 0.0)
        if (x, y, w, h) != (x1, y1, x2 - x1, y2 - y1):
            moved = f"leaves the image of {width}x{height}, and becomes {[x, y, x + w, y + h]}"
            on_fault(Fault(Kind.OUTSIDE, f"{box} {moved}", tolerated=True))
        if w < 1 or h < 1:
            on_fault(Fault(Kind.EMPTY, f"{box}: below a pixel, and left out", tolerated=True))
            continue
        boxes.append((x, y, x + w, y + h))
        found.append(labels[class_name])
    path = _find_image(file, xml.filename, images, annotations)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    ignore = [False] * len(boxes)
    return make_record(image_id, path.name, path, xml.size, boxes, found, ignore, areas)


def _find_image(file: str, filename: str, images: Folder, annotations: Folder) -> Path:
    """<filename> if there is such an image, else one named as the xml is."""
    where = annotations.path / file
    stem = file.removesuffix(".xml")
    suffixes = [variant for suffix in SUFFIXES for variant in (suffix, suffix.upper())]
    for name in (filename, *(stem + suffix for suffix in suffixes)):
        path = images.find(name, str(where)) if name in images else None
        if path is not None:
            return path
    raise Fault(Kind.MISSING, f"{where}: no image {filename!r} or {stem}.* in {images.path}")
