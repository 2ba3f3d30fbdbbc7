"""Write a corrected copy of a split in VOC format."""

import math
from pathlib import Path
from xml.etree import ElementTree

from nanodet_jax.data.faults import Fault, FaultKind, ignore_fault
from nanodet_jax.data.file_search import FileSearch
from nanodet_jax.data.image_files import shown_size
from nanodet_jax.data.sources.clip import Box
from nanodet_jax.data.sources.voc import find_image, parse_xml
from nanodet_jax.data.sources.voc_layout import find_split
from nanodet_jax.doctor.fix.boxes import (
    MISSING,
    REPEATED,
    RESIZED,
    UNREADABLE,
    Changes,
    correct_box,
)
from nanodet_jax.doctor.fix.copy_image import copy_image, is_unreadable, write_bytes
from nanodet_jax.progress import track

SIDES = ("xmin", "ymin", "xmax", "ymax")


def correct_voc(
    root: Path, split: str, out: Path, follow_links: bool, left_out: list[str]
) -> Changes:
    """Write corrected copies of the xml files of a split, and return what was changed.

    The layout of `out` is JPEGImages, Annotations and ImageSets/Main/{split}.txt, because the files
    of every other layout can be stored in it. Files that cannot be parsed are left out, and the
    errors are added to `left_out`.

    Raises:
      UserError: if the split is missing, or a file cannot be written.
    """
    images, annotations, names = find_split(root, split, follow_links, ignore_fault)
    search, changes, listed = FileSearch(images), Changes(), []
    for name in track(names, len(names), f"correcting {split}", "images"):
        try:
            xml = parse_xml(name, annotations)
            given = (xml.findtext("filename") or "").strip()
            image = find_image(name, given, search, images, annotations, ignore_fault)
        except Fault as fault:
            if fault.kind is FaultKind.MISSING:
                changes[MISSING] += 1
            else:
                left_out.append(str(fault))
            continue
        stem = f"{split}/{name[: -len('.xml')]}"
        target = f"{split}/{image.relative_to(images.path).as_posix()}"
        _correct(xml, shown_size(image), changes)
        _set(xml, "filename", target)
        write_bytes(out / "Annotations" / f"{stem}.xml", ElementTree.tostring(xml, "utf-8"))
        copy_image(image, out / "JPEGImages" / target)
        changes[UNREADABLE] += is_unreadable(image)
        listed.append(stem)
    lines = "".join(f"{stem}\n" for stem in listed)
    write_bytes(out / "ImageSets" / "Main" / f"{split}.txt", lines.encode())
    return changes


def _correct(xml: ElementTree.Element, size: tuple[int, int] | None, changes: Changes) -> None:
    """Correct size and boxes in place; `size` is the (height, width) of the image, if known."""
    if size is not None:
        texts = [xml.findtext(f"size/{side}", "0") for side in ("height", "width")]
        if any(_number(text) not in (0, side) for text, side in zip(texts, size)):
            changes[RESIZED] += 1
            _set(xml, "size/height", str(size[0]))
            _set(xml, "size/width", str(size[1]))
    height, width = size or (0, 0)
    seen = set()
    for item in xml.findall("object"):
        numbers = [_number(item.findtext(f"bndbox/{side}", "")) for side in SIDES]
        if not all(map(math.isfinite, numbers)):
            continue  # the box cannot be corrected
        x1, y1, x2, y2 = numbers
        box: Box = (x1, y1, x2, y2)
        corrected = correct_box(box, (width, height), changes, smallest=(1, 1))
        key = item.findtext("name"), corrected
        if corrected is not None and key in seen:
            changes[REPEATED] += 1
        if corrected is None or key in seen:
            xml.remove(item)
            continue
        seen.add(key)
        if corrected != box:
            for side, value in zip(SIDES, corrected):
                _set(item, f"bndbox/{side}", f"{value:g}" if value == int(value) else repr(value))


def _set(element: ElementTree.Element, path: str, text: str) -> None:
    """Set the text of the element at `path` below `element`; create missing elements."""
    for name in path.split("/"):
        found = element.find(name)
        element = ElementTree.SubElement(element, name) if found is None else found
    element.text = text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
