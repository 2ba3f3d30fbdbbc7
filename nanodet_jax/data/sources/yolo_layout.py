"""Layout of a YOLO dataset: class names, and the images and label files of each split.

Format: https://docs.ultralytics.com/datasets/detect/

A data.yaml is distributed with its images, but its paths often refer to the machine where it was
written. Paths are therefore looked up below the folder of data.yaml. Nothing outside this folder is
read, except through links if `follow_links` is set.
"""

import os
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NamedTuple

import yaml

from nanodet_jax.data.faults import NO_VALIDATION, Fault, FaultKind, OnFault
from nanodet_jax.data.folder import Folder, read_annotation
from nanodet_jax.data.image_files import SUFFIXES
from nanodet_jax.data.records import is_name
from nanodet_jax.data.sources.other_layouts import advise_root, require_folder
from nanodet_jax.data.sources.yolo_exports import ADDITIONS, describe_export
from nanodet_jax.errors import UserError

YAML_LIMIT = 1 << 18  # bytes; the names of a thousand classes take 30 thousand
YAML_SUFFIXES = (".yaml", ".yml")
LIST_LIMIT = 1 << 26  # bytes; enough for the paths of a million images
EXAMPLE = "{train: images/train, val: images/val, names: [cat, dog]}"


class LabeledImage(NamedTuple):
    """Image and its label file. Without a label file, `labels` is None, and there are no boxes."""

    id: int  # from 1, in the order of names
    name: str  # relative to the folder of data.yaml, with / as the separator
    file: Path
    labels: Path | None


class YoloSplit(NamedTuple):
    """Classes and images of a split."""

    names: tuple[str, ...]  # of the classes, by label
    names_origin: str  # what defines the classes, for error messages
    images: list[LabeledImage]


class _Description(NamedTuple):
    file: Path
    folder: Folder  # of the dataset
    content: dict[Any, Any]  # as in a data.yaml
    names_origin: str = "`names` in data.yaml"


def read_split(root: Path, split: str, follow_links: bool, on_fault: OnFault) -> YoloSplit:
    """Return the classes and the images of a split; `root` is data.yaml or its folder.

    Paths are resolved as in Ultralytics: relative to `path` or, if nothing is found there, relative
    to the folder of data.yaml. If a path with a leading ../ does not exist, the ../ is dropped,
    because Roboflow exports contain it by mistake. A split is a folder, a .txt file of image paths,
    or a list of these. The path of a label file is the path of its image, with the last folder
    `images` replaced by `labels`, and the suffix by .txt.

    Raises:
      UserError: naming the file and the key that is wrong, or what is missing.
      Fault: of kind NO_VALIDATION, if data.yaml has no `val`; of kind PATH, if it names a path
        outside its folder; whatever `on_fault` raises.
    """
    file, folder, content, names_origin = _find_description(root, follow_links)
    names = _read_names(content, file)
    bases = _read_base_folders(content, file)
    found: dict[str, Path] = {}
    searched: set[str] = set()  # folders whose images all belong to the split
    for entry in _read_entries(content, split, file):
        where = f"{file}: {split}"
        name = _locate(folder, bases, entry, where)
        if name is None:
            raise UserError(
                f"{where}: {entry!r} does not exist below {folder.path}, the only place where it "
                "is looked up; correct it, or move data.yaml to the folder that contains the "
                "images and labels"
            )
        if (folder.path / name).is_dir():
            for path in folder.names_below(name, where, on_fault):
                if _is_image(os.path.basename(path)):
                    _add(found, folder, path, where, on_fault)
                    searched.add(os.path.dirname(path))
        elif name.endswith(".txt"):
            for path, line in _read_list(folder, bases, name, on_fault):
                _add(found, folder, path, line, on_fault)
        else:
            raise UserError(f"{where}: {entry!r} is neither a folder nor a .txt list of images")
    if not found:
        raise UserError(f"{file}: {split}: no images found ({', '.join(SUFFIXES)})")
    images = _with_labels(found, folder, file, on_fault)
    if images and all(image.labels is None for image in images):
        expected = folder.path / label_name(images[0].name)
        found_none = f"none of the {len(images)} images has a label file"
        raise UserError(f"{file}: {split}: {found_none}; expected {expected} for the first")
    for name in sorted(searched):
        _report_orphans(folder, name, on_fault)
    return YoloSplit(names, names_origin, images)


def _find_description(root: Path, follow_links: bool) -> _Description:
    """Read data.yaml or, if there is none, describe the export that the folder contains."""
    if root.is_file() and root.suffix.lower() in YAML_SUFFIXES:
        return _Description(root, Folder(root.parent, follow_links), _read_yaml(root))
    require_folder(root, ", or to its data.yaml")
    folder = Folder(root, follow_links)
    for name in ("data.yaml", "data.yml"):
        file = folder.find(name, str(root))
        if file is not None:
            return _Description(file, folder, _read_yaml(file))
    export = describe_export(folder)
    if export is None:
        write = f"write one, for example {EXAMPLE}"
        if "images" in folder and "labels" in folder:
            write += ", or a classes.txt with one class name per line"
        fix = advise_root(root, "yolo") or write
        raise UserError(f"{root}: no data.yaml in this folder; {fix}")
    return _Description(root / export.name, folder, export.content, export.names_file)


class _PlainLoader(yaml.SafeLoader):
    """Loader that rejects aliases. With aliases, a few lines can expand until memory is full."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


def _read_yaml(file: Path) -> dict[Any, Any]:
    text = read_annotation(file, YAML_LIMIT, "a data.yaml")
    try:
        content = yaml.load(text, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{file}: invalid yaml{at}: {error.problem}") from error
    except Exception as error:  # PyYAML lets errors from its conversions escape
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{file}: not yaml: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a YOLO data.yaml; write, for example, {EXAMPLE}")
    if "kpt_shape" in content:
        raise UserError(f"{file}: kpt_shape: pose labels are not supported; use boxes or polygons")
    return content


def _read_names(content: dict[Any, Any], file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if not all(type(key) is int for key in names) or sorted(names) != [*range(len(names))]:
            raise UserError(f"{file}: the keys of names must be 0 to {len(names) - 1}, each once")
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: `names` must be a list of the classes, such as names: [cat, dog]")
    for label, name in enumerate(names):
        if not is_name(name):
            found = f"the name of class {label} is {reprlib.repr(name)}, not a printable string"
            raise UserError(f"{file}: {found}; quote or correct it")
    count = content.get("nc", len(names))
    if type(count) is not int or count != len(names):
        found = f"nc is {reprlib.repr(count)}, but there are {len(names)} names"
        raise UserError(f"{file}: {found}; remove nc")
    return tuple(names)


def _read_base_folders(content: dict[Any, Any], file: Path) -> tuple[str, ...]:
    """Return the folders that paths may be relative to, in the order in which they are tried."""
    path = content.get("path") or ""
    if not isinstance(path, str):
        raise UserError(f"{file}: path is {reprlib.repr(path)}, not a string; remove it")
    if not path or PureWindowsPath(path).drive:  # with a drive: a folder on another machine
        return ("",)
    return (path, "")


def _read_entries(content: dict[Any, Any], split: str, file: Path) -> list[str]:
    entries = content.get(split)
    if isinstance(entries, str):
        entries = [entries]
    if not isinstance(entries, list) or not entries or not all(map(is_name, entries)):
        found = f"{split} is {reprlib.repr(entries)}" if split in content else f"has no {split}"
        fix = f"use a folder of images, such as {split}: images/{split}"
        message = f"{file}: {found}; {ADDITIONS.get(file.name, {}).get(split, fix)}"
        if split == "val":
            message += f"; or {NO_VALIDATION}"
            if split not in content:
                raise Fault(FaultKind.NO_VALIDATION, message)
        raise UserError(message)
    return entries


def _locate(folder: Folder, bases: Sequence[str], text: str, where: str) -> str | None:
    """Return the name below `folder` that `text` refers to, or None if nothing exists there.

    Raises:
      Fault: if every interpretation of `text` is outside the folder, or a link points outside.
    """
    top = os.path.abspath(folder.path)
    has_drive = bool(PureWindowsPath(text).drive)
    inside = False
    for base in bases:
        for path in _spellings(text):
            whole = os.path.normpath(os.path.join(top, base, path))
            if PurePath(whole).is_relative_to(top) and not PureWindowsPath(path).drive:
                inside = inside or not has_drive
                name = os.path.relpath(whole, top)
                if folder.find(name, where) is not None:
                    return name
    if not inside:
        found = f"{text!r} points outside the folder {folder.path}"
        fix = "move its target into the folder, and correct the path"
        raise Fault(FaultKind.PATH, f"{where}: {found}; {fix}")
    return None


def _spellings(text: str) -> list[str]:
    """Return the paths that `text` may stand for, in the order in which they are tried.

    Roboflow writes a leading ../, and CVAT a leading data/, even if that folder does not exist.
    Windows paths use \\ as the separator. If they start with a drive, any folder in them may be the
    folder of the dataset.
    """
    found = [text, text.removeprefix("../")]
    plain = text.replace("\\", "/")
    found += [plain, plain.removeprefix("../"), plain.removeprefix("data/")]
    if PureWindowsPath(text).drive:
        parts = plain.split("/")[1:]
        found += ["/".join(parts[start:]) for start in range(len(parts))]
    return list(dict.fromkeys(found))


def _read_list(
    folder: Folder, bases: Sequence[str], name: str, on_fault: OnFault
) -> Iterator[tuple[str, str]]:
    """Yield the name of each image in a list, and where the list names it, for messages."""
    file = folder.path / name
    text = read_annotation(file, LIST_LIMIT, "a list of images").decode("utf-8-sig", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{file}: line {number}"
        if not line.strip():
            continue
        try:
            image = _locate(folder, (os.path.dirname(name), *bases), line.strip(), where)
            if image is None:
                message = f"{where}: image {line.strip()!r} does not exist"
                raise Fault(FaultKind.MISSING, message)
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
) -> list[LabeledImage]:
    images = []
    for id, name in enumerate(sorted(found), start=1):
        try:
            labels = folder.find(label_name(name), f"{file}: image {name}")
        except Fault as fault:
            on_fault(fault)
            continue
        images.append(LabeledImage(id, name, found[name], labels))
    return images


def label_name(image: str) -> str:
    """Return the name of the label file of an image, both relative to the dataset."""
    labels = "/labels/".join(f"/{image}".rsplit("/images/", 1))[1:]
    return os.path.splitext(labels)[0] + ".txt"


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and name[0] != "."  # macOS adds ._a.jpg to archives


def _report_orphans(folder: Folder, images: str, on_fault: OnFault) -> None:
    """Report label files whose image is missing from the folder `images`."""
    labels = os.path.dirname(label_name(f"{images}/x"))
    try:
        path = folder.find(labels, images)
    except Fault:  # already reported for each image
        return
    # Text files next to images need not be labels.
    if labels == images or path is None or not path.is_dir():
        return
    image_names = filter(_is_image, Folder(folder.path / images).names())
    known = {os.path.splitext(name)[0] + ".txt" for name in image_names}
    known.add("classes.txt")  # in which annotation tools list the class names
    for name in sorted(set(Folder(path).names()) - known):
        if name.endswith(".txt") and name[0] != ".":
            message = f"{path / name}: labels without an image in {folder.path / images}"
            on_fault(Fault(FaultKind.MISSING, message, tolerated=True))
