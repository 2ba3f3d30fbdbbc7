"""Source for the Pascal VOC format: a folder of images and one xml file of boxes per image.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2007/devkit_doc_07-Jun-2007.pdf

Boxes are converted as in the original, with one difference. The original skips an inverted box or
an unlisted class with a warning. Here both are errors that name the xml file.
"""

import math
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

from nanodet_jax.data.faults import Fault, FaultKind, OnFault, raise_fault
from nanodet_jax.data.file_search import FileSearch
from nanodet_jax.data.folder import Folder, points_outside, read_annotation
from nanodet_jax.data.image_files import SUFFIXES
from nanodet_jax.data.records import Category, Record, make_record
from nanodet_jax.data.sources.clip import clip_box
from nanodet_jax.data.sources.in_memory import InMemorySource
from nanodet_jax.data.sources.voc_layout import find_split
from nanodet_jax.errors import UserError

XML_LIMIT = 16 << 20  # bytes; a thousand objects take 300 thousand

Corners = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax


class VocSource(InMemorySource):
    """Split `train` or `val` of `root`, ordered by xml name; image and category ids start at 1.

    `voc_layout.find_split` lists the layouts. Objects marked `difficult` are treated as ordinary
    objects. Boxes smaller than one pixel are skipped.

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
        images, annotations, names = find_split(root, split, follow_links, on_fault)
        search = FileSearch(images)
        records = []
        for image_id, name in enumerate(names, start=1):
            try:
                record = _make_record(name, image_id, search, images, annotations, labels, on_fault)
            except Fault as fault:
                on_fault(fault)
                continue
            records.append(record)
        super().__init__(tuple(Category(i, name) for i, name in enumerate(classes, 1)), records)


def require_voc_class_names(
    root: Path,
    split: str = "train",
    *,
    follow_links: bool = False,
    on_fault: OnFault = raise_fault,
) -> tuple[str, ...]:
    """Return the class names of a split, sorted; there must be at least one.

    Raises:
      UserError: if the split is missing or has no objects.
      Fault: whatever `on_fault` raises, naming the xml file.
    """
    names = voc_class_names(root, split, follow_links=follow_links, on_fault=on_fault)
    if not names:
        _, annotations, files = find_split(root, split, follow_links, on_fault)
        raise UserError(f"{annotations.path}: no objects in any xml file ({len(files)} read)")
    return names


def voc_class_names(
    root: Path, split: str, *, follow_links: bool = False, on_fault: OnFault = raise_fault
) -> tuple[str, ...]:
    """Return the class names of a split, sorted; () if it has no objects.

    Raises:
      UserError: if the split is missing.
      Fault: whatever `on_fault` raises, naming the xml file.
    """
    _, annotations, files = find_split(root, split, follow_links, on_fault)
    names: set[str] = set()
    for file in files:
        try:
            names |= {name for name, _ in _read_xml(file, annotations, on_fault).objects}
        except Fault as fault:
            on_fault(fault)
    return tuple(sorted(names))


class _Xml(NamedTuple):
    filename: str
    size: tuple[int, int]  # height, width; 0 where the file gives none
    objects: list[tuple[str, Corners]]  # class name and box


class _NoDoctype(ElementTree.TreeBuilder):
    """Tree builder that rejects a DOCTYPE, whose entities could expand until memory is full."""

    def doctype(self, name: str, *_: Any) -> None:
        raise ValueError("declares a DOCTYPE, which is not allowed; delete that line")


def parse_xml(name: str, annotations: Folder) -> ElementTree.Element:
    """Read an xml file of a folder.

    Raises:
      Fault: naming the file, if a link points outside the folder, or the file cannot be read or
        parsed.
    """
    file = annotations.path / name
    annotations.find(name, str(file))  # rejects links to the outside
    content = read_annotation(file, XML_LIMIT, "the boxes of an image")
    try:
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
    except ElementTree.ParseError as error:
        raise Fault(FaultKind.FILE, f"{file}: invalid xml: {error}") from error
    except (ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise Fault(FaultKind.FILE, f"{file}: {error}") from error


def _read_xml(name: str, annotations: Folder, on_fault: OnFault) -> _Xml:
    root, file = parse_xml(name, annotations), annotations.path / name
    try:
        sides = [_number(root, f"size/{side}", "0") for side in ("height", "width")]
        if min(sides) < 0 or any(side != int(side) for side in sides):
            raise ValueError(f"size (height, width) {sides} must be whole numbers of pixels")
    except ValueError as error:
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
    search: FileSearch,
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
            moved = f"extends beyond the {width}x{height} image; moved to {[x, y, x + w, y + h]}"
            on_fault(Fault(FaultKind.OUTSIDE, f"{box} {moved}", tolerated=True))
        if w < 1 or h < 1:
            message = f"{box} is smaller than one pixel and is skipped"
            on_fault(Fault(FaultKind.EMPTY, message, tolerated=True))
            continue
        boxes.append((x, y, x + w, y + h))
        box_labels.append(labels[class_name])
    path = find_image(file, xml.filename, search, images, annotations, on_fault)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    ignore = [False] * len(boxes)
    name = path.relative_to(images.path).as_posix()
    return make_record(image_id, name, path, xml.size, boxes, box_labels, ignore, areas)


def find_image(
    file: str,
    filename: str,
    search: FileSearch,
    images: Folder,
    annotations: Folder,
    on_fault: OnFault,
) -> Path:
    """Return the image named in <filename> or, if it is missing, one named after the xml file.

    Raises:
      Fault: if neither exists.
    """
    where = str(annotations.path / file)
    folder, slash, _ = file.rpartition("/")
    stem = file[: -len(".xml")]
    suffixes = [variant for suffix in SUFFIXES for variant in (suffix, suffix.upper())]
    named = [f"{folder}{slash}{filename}", filename] if filename else []
    for name in (*named, *(stem + suffix for suffix in suffixes)):
        path = images.find(name, where) if not points_outside(name) else None
        if path is not None:
            return path
    last = PureWindowsPath(filename).name  # <filename> may be a full path, even a Windows path
    for name in (last, *(stem + suffix for suffix in SUFFIXES)):
        path = search.find(name, where, on_fault) if name else None
        if path is not None:
            return path
    raise Fault(FaultKind.MISSING, f"{where}: no image {filename!r} or {stem}.* in {images.path}")
