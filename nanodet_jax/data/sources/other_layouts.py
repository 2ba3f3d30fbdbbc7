"""Advice for a folder that does not have a layout of the configured format.

The format of a folder is guessed from the names in it and in its subfolders. No file is read.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from nanodet_jax.errors import UserError

MAX_ENTRIES = 10_000  # read from each folder
MAX_LEVELS = 2  # folders searched above the given one, which may be DATASET/train/images
MAX_FOLDERS = 20  # subfolders that are listed
FORMATS = {"coco": "COCO json", "voc": "Pascal VOC", "yolo": "YOLO"}
# Names that COCO datasets use for each split.
COCO_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}
# Names for the annotations of a dataset without splits. All its images are training images.
COCO_UNSPLIT = ("default", "all")
COCO_YEARS = ("2017", "2014", "")
VOC_XML_FOLDERS = ("Annotations", "annotations", "train")  # the last one in Roboflow exports
VOC_FOLDERS = (  # folders of xml files and of images
    {"Annotations", "JPEGImages"},
    {"VOC2007/Annotations", "VOC2007/JPEGImages"},
    {"VOC2012/Annotations", "VOC2012/JPEGImages"},
    {"train/annotations", "train/images"},
)
YOLO_FILES = {"data.yaml", "data.yml", "obj.data"}


def require_folder(root: Path, fix: str = "") -> None:
    """Check that the root of a dataset is a folder.

    Raises:
      UserError: if it is missing or a file. `fix` is appended to the message about a file.
    """
    if root.is_file():
        raise UserError(
            f"{root}: is a file; set config.data.root to the folder of the dataset{fix}"
        )
    if not root.is_dir():
        raise UserError(f"{root}: folder is missing")


def advise_root(root: Path, data_format: str) -> str:
    """Return how to select the dataset if `root` has another format or is part of a dataset.

    Return "" if `root` seems to have the format `data_format`, or if neither `root` nor one of the
    two folders above it has a known layout.
    """
    found = _guess_formats(root)
    if data_format in found:
        return ""
    if found:
        flags = f"--config.data.format={found[0]}, or {found[0]}:FOLDER in config.data.sources"
        return f"this folder looks like a {FORMATS[found[0]]} dataset: use {flags}"
    for above in Path(os.path.abspath(root)).parents[:MAX_LEVELS]:
        found = _guess_formats(above)
        if found:
            flags = f"--config.data.root={above}"
            if data_format not in found:
                flags += f" --config.data.format={found[0]}"
            return f"the dataset seems to be in a folder above: use {flags}"
    return ""


def coco_files(split: str) -> list[str]:
    """Return the possible names of the annotation file of a split, in the order they are tried."""
    names = COCO_SPLITS[split]
    stems = [f"instances_{name}{year}" for name in names for year in COCO_YEARS]
    stems += [f"{name}{year}" for name in names for year in COCO_YEARS]
    # CVAT writes subset names as the user typed them, often capitalized.
    stems += [f"instances_{name.capitalize()}" for name in names]
    files = [f"{name}/_annotations.coco.json" for name in names]
    files += [f"annotations/{stem}.json" for stem in stems]
    files += [f"{stem}.json" for stem in stems]
    if split == "train":
        files.append("_annotations.coco.json")
        files += [f"annotations/instances_{name}.json" for name in COCO_UNSPLIT]
        files += ["result.json", "annotations.json", "instances.json"]
    return files


def _guess_formats(folder: Path) -> list[str]:
    """Return the formats whose layouts a folder seems to have, the most likely first."""
    names = set(_names(folder))
    found = []
    if names & YOLO_FILES:
        found.append("yolo")
    if not names.isdisjoint([*coco_files("train"), *coco_files("val")]):
        found.append("coco")
    in_folders = (name.partition("/") for name in names)
    has_xml = any(
        top in VOC_XML_FOLDERS and name.lower().endswith(".xml") for top, _, name in in_folders
    )
    if has_xml or any(folders <= names for folders in VOC_FOLDERS):
        found.append("voc")
    # Other programs write classes.txt, too.
    if "yolo" not in found and "classes.txt" in names and "labels" in names:
        found.append("yolo")
    return found


def _names(folder: Path) -> Iterator[str]:
    """Yield the names in a folder and in its subfolders, without following links."""
    inner: list[str] = []
    for entry in _entries(folder):
        yield entry.name
        if len(inner) < MAX_FOLDERS and entry.is_dir(follow_symlinks=False):
            inner.append(entry.name)
    for name in inner:
        for entry in _entries(folder / name):
            yield f"{name}/{entry.name}"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [*islice(entries, MAX_ENTRIES)]
    except OSError:  # the advice is left out
        return []
