"""YOLO's data.yaml: the names of the classes, and where images and labels of a split lie.

A data.yaml comes from somewhere else with its images, and speaks of the machine it was made on.
So what it names is looked for below its own folder, and nothing outside of it is ever read.
"""

import os
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml

from nanodet_jax.data.faults import Fault, Kind, OnFault
from nanodet_jax.data.folder import Folder, read_annotation
from nanodet_jax.data.image_files import SUFFIXES
from nanodet_jax.data.records import is_name
from nanodet_jax.errors import UserError

YAML_LIMIT = 1 << 18  # bytes; the names of a thousand classes take 30 thousand
LIST_LIMIT = 1 << 26  # bytes; a path of a million images each
EXAMPLE = "{train: images/train, val: images/val, names: [cat, dog]}"


class Labelled(NamedTuple):
    """An image and the file of its boxes, None where there is none: it has no boxes then."""

    id: int  # from 1, in the order of names
    name: str  # below the folder of data.yaml, with /
    image: Path
    labels: Path | None


def read_split(
    root: Path, split: str, follow_links: bool, on_fault: OnFault
) -> tuple[tuple[str, ...], list[Labelled]]:
    """Class names by label, and the images of a split; `root` is data.yaml or its folder.

    Paths mean what they mean to Ultralytics: they start at `path`, and where that is not here, or
    leads elsewhere, at the folder of data.yaml; a leading ../ that leads nowhere is left out, for
    Roboflow writes it without meaning it. A split is a folder, a .txt of image paths, or a list of
    both. Of an image's path the last folder `images` becomes `labels`, and the suffix .txt.

    Raises:
      UserError: naming the file and the key at fault, or what is missing.
      Fault: as `on_fault` raises them.
    """
    file, folder = _find_yaml(root, follow_links)
    content = _read_yaml(file)
    names = _read_names(content, file)
    bases = _read_base(content, file)
    found: dict[str, Path] = {}
    searched: set[str] = set()  # folders in which every image is the split's
    for entry in _read_entries(content, split, file):
        where = f"{file}: {split}"
        name = _locate(folder, bases, entry, where)
        if name is None:
            raise UserError(
                f"{where}: {entry!r} is not there; it is looked for below {folder.path} alone, so "
                "correct it, or put the data.yaml into the folder of images and labels"
            )
        if (folder.path / name).is_dir():
            for one in folder.names_below(name, where, on_fault):
                if _is_image(os.path.basename(one)):
                    _add(found, folder, one, where, on_fault)
                    searched.add(os.path.dirname(one))
        elif name.endswith(".txt"):
            for one, line in _read_list(folder, bases, name, on_fault):
                _add(found, folder, one, line, on_fault)
        else:
            raise UserError(f"{where}: {entry!r} is neither a folder nor a .txt list of images")
    if not found:
        raise UserError(f"{file}: {split}: no images ({', '.join(SUFFIXES)}) are there")
    images = _with_labels(found, folder, file, on_fault)
    if images and all(image.labels is None for image in images):
        expected = folder.path / _label_name(images[0].name)
        found_none = f"none of {len(images)} images has labels"
        raise UserError(f"{file}: {split}: {found_none}; the first would have them in {expected}")
    for one in sorted(searched):
        _tell_of_orphans(folder, one, on_fault)
    return names, images


def _find_yaml(root: Path, follow_links: bool) -> tuple[Path, Folder]:
    if root.is_file():
        return root, Folder(root.parent, follow_links)
    folder = Folder(root, follow_links)
    file = folder.find("data.yaml", str(root))
    if file is None:
        raise UserError(f"{root}: no data.yaml lies there; write one, such as {EXAMPLE}")
    return file, folder


class _PlainLoader(yaml.SafeLoader):
    """Plain values without references: a few lines that merge those of others fill the memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="references (*) are refused", problem_mark=mark)
        return super().compose_node(parent, index)


def _read_yaml(file: Path) -> dict[Any, Any]:
    text = read_annotation(file, YAML_LIMIT, "a data.yaml")
    try:
        content = yaml.load(text, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{file}: broken yaml{at}: {error.problem}") from error
    except Exception as error:  # PyYAML passes on whatever its conversions meet
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{file}: no yaml: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: no data.yaml of YOLO, which is such as {EXAMPLE}")
    if "kpt_shape" in content:
        raise UserError(f"{file}: kpt_shape: labels of poses are not read, only boxes and polygons")
    return content


def _read_names(content: dict[Any, Any], file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if not all(type(key) is int for key in names) or sorted(names) != [*range(len(names))]:
            raise UserError(f"{file}: the keys of names are not 0 to {len(names) - 1}, each once")
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: needs names, a list of the classes, such as names: [cat, dog]")
    for label, name in enumerate(names):
        if not is_name(name):
            found = f"the name of class {label} is {reprlib.repr(name)}, no text"
            raise UserError(f"{file}: {found}; put it in quotes")
    count = content.get("nc", len(names))
    if type(count) is not int or count != len(names):
        found = f"nc is {reprlib.repr(count)}, but there are {len(names)} names"
        raise UserError(f"{file}: {found}; leave nc out")
    return tuple(names)


def _read_base(content: dict[Any, Any], file: Path) -> tuple[str, ...]:
    """Where paths start, those to be tried first before the others."""
    path = content.get("path") or ""
    if not isinstance(path, str):
        raise UserError(f"{file}: path is {reprlib.repr(path)}, no text; leave it out")
    return (path, "") if path else ("",)


def _read_entries(content: dict[Any, Any], split: str, file: Path) -> list[str]:
    entries = content.get(split)
    if isinstance(entries, str):
        entries = [entries]
    if not isinstance(entries, list) or not entries or not all(map(is_name, entries)):
        found = f"{split} is {reprlib.repr(entries)}" if split in content else f"has no {split}"
        raise UserError(
            f"{file}: {found}; give a folder of images, such as {split}: images/{split}"
        )
    return entries


def _locate(folder: Folder, bases: Sequence[str], text: str, where: str) -> str | None:
    """The name below `folder` of what `text` means, None if nothing is there.

    Raises:
      Fault: if it could only mean something outside, or leads there through a link.
    """
    top = os.path.abspath(folder.path)
    inside = False
    for base in bases:
        for path in dict.fromkeys((text, text.removeprefix("../"))):
            whole = os.path.normpath(os.path.join(top, base, path))
            if PurePath(whole).is_relative_to(top):
                inside = True
                name = os.path.relpath(whole, top)
                if folder.find(name, where) is not None:
                    return name
    if not inside:
        found = f"{text!r} is a path out of the folder {folder.path}"
        raise Fault(
            Kind.PATH, f"{where}: {found}; put what it names there, and give names below it"
        )
    return None


def _read_list(
    folder: Folder, bases: Sequence[str], name: str, on_fault: OnFault
) -> Iterator[tuple[str, str]]:
    """Names of the images in a list, and the lines that name them, for messages."""
    file = folder.path / name
    text = read_annotation(file, LIST_LIMIT, "a list of images").decode("utf-8-sig", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{file}: line {number}"
        if not line.strip():
            continue
        try:
            image = _locate(folder, (os.path.dirname(name), *bases), line.strip(), where)
            if image is None:
                raise Fault(Kind.MISSING, f"{where}: there is no image {line.strip()!r}")
        except Fault as fault:
            on_fault(fault)
            continue
        yield image, where


def _add(found: dict[str, Path], folder: Folder, name: str, where: str, on_fault: OnFault) -> None:
    try:
        path = folder.find(name, where)
    except Fault as fault:
        on_fault(fault)
        return
    if path is not None:
        found[name] = path


def _with_labels(
    found: dict[str, Path], folder: Folder, file: Path, on_fault: OnFault
) -> list[Labelled]:
    images = []
    for id, name in enumerate(sorted(found), start=1):
        try:
            labels = folder.find(_label_name(name), f"{file}: image {name}")
        except Fault as fault:
            on_fault(fault)
            continue
        images.append(Labelled(id, name, found[name], labels))
    return images


def _label_name(image: str) -> str:
    labels = "/labels/".join(f"/{image}".rsplit("/images/", 1))[1:]
    return os.path.splitext(labels)[0] + ".txt"


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and name[0] != "."  # macOS leaves ._a.jpg in archives


def _tell_of_orphans(folder: Folder, images: str, on_fault: OnFault) -> None:
    """Labels whose image is not in the folder `images`, where it would be looked for."""
    labels = os.path.dirname(_label_name(f"{images}/x"))
    try:
        path = folder.find(labels, images)
    except Fault:  # told of with the images
        return
    if labels == images or path is None or not path.is_dir():  # beside images a text may be any
        return
    pictures = filter(_is_image, Folder(folder.path / images).names())
    known = {os.path.splitext(name)[0] + ".txt" for name in pictures}
    known.add("classes.txt")  # programs for labelling put their list of names there
    for name in sorted(set(Folder(path).names()) - known):
        if name.endswith(".txt") and name[0] != ".":
            message = f"{path / name}: labels of no image in {folder.path / images}"
            on_fault(Fault(Kind.MISSING, message, tolerated=True))
