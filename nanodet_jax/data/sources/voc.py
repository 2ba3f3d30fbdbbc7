"""Source for the Pascal VOC format: a folder of images and one xml file of boxes per image.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2007/devkit_doc_07-Jun-2007.pdf

Boxes are converted as in the original, with one difference. The original skips an inverted box or
an unlisted class with a warning. Here both are errors that name the xml file.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from nanodet_jax.data.faults import Fault, FaultKind, OnFault, raise_fault
from nanodet_jax.data.folder import Folder, read_annotation
from nanodet_jax.data.image_files import SUFFIXES
from nanodet_jax.data.records import Category, Record, make_record
from nanodet_jax.data.sources.clip import clip_box
from nanodet_jax.data.sources.in_memory import InMemorySource
from nanodet_jax.errors import UserError

XML_LIMIT = 16 << 20  # bytes; a thousand objects take 300 thousand

Corners = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax


class VocSource(InMemorySource):
    """Split `train` or `val` of `root`, ordered by xml name; image and category ids start at 1.

    Two layouts are supported: `root/{train,val}/{images,annotations}`, and VOC2007's layout
    `root/{JPEGImages,Annotations,ImageSets/Main/{train,val}.txt}`, also inside `root/VOC2007`.
    Objects marked `difficult` are treated as ordinary objects. Boxes smaller than one pixel are
    skipped.

    Raises:
      UserError: naming the folder or list that is missing or unusable.
      Fault: whatever `on_fault` raises; by default the first fault that is not tolerated.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        classes: tuple[str, ...],
        *,
        follow_links: bool = False,
        on_fault: OnFault = raise_fault,
    ) -> None:
        repeated = [name for name in classes if classes.count(name) > 1]
        if repeated:
            raise UserError(f"config.data.classes: {repeated[0]!r} is listed twice; list it once")
        labels = {name: label for label, name in enumerate(classes)}
        images, annotations, names = _find_split(root, split, follow_links, on_fault)
        records = []
        for image_id, name in enumerate(names, start=1):
            try:
                record = _make_record(name, image_id, images, annotations, labels, on_fault)
            except Fault as fault:
                on_fault(fault)
                continue
            records.append(record)
        super().__init__(tuple(Category(i, name) for i, name in enumerate(classes, 1)), records)


def voc_classes(
    root: Path,
    split: str = "train",
    *,
    follow_links: bool = False,
    on_fault: OnFault = raise_fault,
) -> tuple[str, ...]:
    """Return all class names of a split, sorted.

    Raises:
      UserError: if the split is missing or has no objects.
      Fault: whatever `on_fault` raises, naming the xml file.
    """
    _, annotations, files = _find_split(root, split, follow_links, on_fault)
    names: set[str] = set()
    for file in files:
        try:
            names |= {name for name, _ in _read_xml(file, annotations, on_fault).objects}
        except Fault as fault:
            on_fault(fault)
    if not names:
        raise UserError(f"{annotations.path}: no objects in any of {len(files)} xml files")
    return tuple(sorted(names))


def _find_split(
    root: Path, split: str, follow_links: bool, on_fault: OnFault
) -> tuple[Folder, Folder, list[str]]:
    """Return the folder of images, the folder of xml files, and the split's xml file names."""
    if not root.is_dir():
        raise UserError(f"{root}: folder is missing")
    if (root / split).is_dir():
        images = Folder(root / split / "images", follow_links)
        annotations = Folder(root / split / "annotations", follow_links)
        # Archives made on macOS contain metadata files that start with a dot.
        names = [n for n in annotations.names() if n.endswith(".xml") and n[0] != "."]
        origin = annotations.path
    else:
        base = root / "VOC2007" if (root / "VOC2007").is_dir() else root
        origin = base / "ImageSets" / "Main" / f"{split}.txt"
        if not origin.is_file():
            raise UserError(
                f"{root}: has neither {split}/images and {split}/annotations nor "
                f"ImageSets/Main/{split}.txt (VOC2007)"
            )
        images = Folder(base / "JPEGImages", follow_links)
        annotations = Folder(base / "Annotations", follow_links)
        lines = origin.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [f"{line.split()[0]}.xml" for line in lines if line.strip()]
        missing = sorted(name for name in names if name not in annotations)
        if missing:
            # Listed names contain no folders, so nothing outside this folder is ever read.
            message = f"{annotations.path / missing[0]}: missing, but listed in {origin}"
            on_fault(Fault(FaultKind.MISSING, f"{message} (the first of {len(missing)})"))
            names = [name for name in names if name in annotations]
    if not names:
        raise UserError(f"{origin}: no xml files; each image needs one, even without objects")
    return images, annotations, sorted(set(names))


class _Xml(NamedTuple):
    filename: str
    size: tuple[int, int]  # height, width; 0 where the file has none
    objects: list[tuple[str, Corners]]  # class name and box


class _NoDoctype(ElementTree.TreeBuilder):
    """Tree builder that rejects declared entities, whose expansion could fill the memory."""

    def doctype(self, name: str, *_: Any) -> None:
        raise ValueError("declares a DOCTYPE, which is not allowed; delete that line")


def _read_xml(name: str, annotations: Folder, on_fault: OnFault) -> _Xml:
    file = annotations.path / name
    annotations.find(name, str(file))  # rejects links out of the folder
    content = read_annotation(file, XML_LIMIT, "the boxes of an image")
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
        sides = [_number(root, f"size/{side}", "0") for side in ("height", "width")]
        if min(sides) < 0 or any(side != int(side) for side in sides):
            raise ValueError(f"size (height, width) {sides} is not a number of pixels")
    except ElementTree.ParseError as error:
        raise Fault(FaultKind.FILE, f"{file}: invalid xml: {error}") from error
    except (ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise Fault(FaultKind.FILE, f"{file}: {error}") from error
    objects = []
    for number, item in enumerate(root.iterfind("object"), start=1):
        try:
            objects.append(_read_object(item, f"{file}: object {number}"))
        except Fault as fault:
            on_fault(fault)
    filename = (root.findtext("filename") or "").strip()
    return _Xml(filename, (int(sides[0]), int(sides[1])), objects)


def _read_object(item: ElementTree.Element, where: str) -> tuple[str, Corners]:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise Fault(FaultKind.CLASSES, f"{where} has no name")
    try:
        corners = [_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError as error:
        raise Fault(FaultKind.NUMBERS, f"{where} ({name}): {error}") from error
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        raise Fault(FaultKind.INVERTED, f"{where} ({name}) has an inverted box {corners}")
    return name, (x1, y1, x2, y2)


def _number(element: ElementTree.Element, path: str, default: str = "") -> float:
    text = element.findtext(path, default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} is {text!r}, not a finite number; correct it")
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
    boxes: list[Corners] = []
    box_labels: list[int] = []
    for class_name, (x1, y1, x2, y2) in xml.objects:
        box = f"{where}: box {[x1, y1, x2, y2]} ({class_name})"
        if class_name not in labels:
            known = f"class {class_name!r} is not one of config.data.classes: {', '.join(labels)}"
            on_fault(Fault(FaultKind.CLASSES, f"{where}: {known}"))
            continue
        given = x1, y1, x2 - x1, y2 - y1
        clipped = clip_box(given, width or math.inf, height or math.inf)
        x, y, w, h = clipped
        if clipped != given:
            moved = f"leaves the image of {width}x{height}; moved to {[x, y, x + w, y + h]}"
            on_fault(Fault(FaultKind.OUTSIDE, f"{box} {moved}", tolerated=True))
        if w < 1 or h < 1:
            message = f"{box}: smaller than one pixel, skipped"
            on_fault(Fault(FaultKind.EMPTY, message, tolerated=True))
            continue
        boxes.append((x, y, x + w, y + h))
        box_labels.append(labels[class_name])
    path = _find_image(file, xml.filename, images, annotations)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    ignore = [False] * len(boxes)
    return make_record(image_id, path.name, path, xml.size, boxes, box_labels, ignore, areas)


def _find_image(file: str, filename: str, images: Folder, annotations: Folder) -> Path:
    """Return the image named in <filename>, or else the one named like the xml file.

    Raises:
      Fault: if neither exists.
    """
    where = annotations.path / file
    stem = file.removesuffix(".xml")
    suffixes = [variant for suffix in SUFFIXES for variant in (suffix, suffix.upper())]
    for name in (filename, *(stem + suffix for suffix in suffixes)):
        path = images.find(name, str(where)) if name in images else None
        if path is not None:
            return path
    raise Fault(FaultKind.MISSING, f"{where}: no image {filename!r} or {stem}.* in {images.path}")
