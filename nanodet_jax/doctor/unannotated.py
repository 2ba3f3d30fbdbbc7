"""Find images without annotations in the listings of folders. No files are read."""

import os
from collections.abc import Sequence
from pathlib import Path

from nanodet_jax.config import Config
from nanodet_jax.data.image_files import SUFFIXES
from nanodet_jax.data.records import Record
from nanodet_jax.data.sources.yolo_layout import label_name
from nanodet_jax.doctor.findings import Finding, Lost, Severity


def find_unlisted(config: Config, records: Sequence[Record], lost: Lost) -> list[Finding]:
    """Return a finding if folders contain images that the COCO annotations do not list.

    Only folders that contain a listed image are examined.

    Args:
      config: its `data` is used.
      records: images of both splits, which may share a folder.
      lost: entries that faults hide. They may list some of the images found.
    """
    if config.data.format != "coco" or config.data.sources:
        return []
    listed = {record.image for record in records if isinstance(record.image, Path)}
    folders = sorted({file.parent for file in listed})
    found = []
    for folder in folders:
        names = sorted(os.listdir(folder))
        images = (n for n in names if n.lower().endswith(SUFFIXES) and n[0] != ".")
        found += [folder / name for name in images if folder / name not in listed]
    if len(found) <= lost.images + lost.entries:
        return []
    where = os.path.commonpath(folders)
    title = f"{len(found)} images in {where} are not in the annotations, such as {found[0].name}"
    fix = "annotate them if they contain objects; training does not use them"
    examples = tuple(map(str, found))
    return [Finding(Severity.NOTE, "unlisted_images", title, fix, "", len(found), examples)]


def find_unlabeled(config: Config, split: str, records: Sequence[Record]) -> list[Finding]:
    """Return a finding if YOLO images of a split have no label file."""
    if config.data.format != "yolo" or config.data.sources:
        return []
    root = Path(config.data.root).expanduser()
    folder = root if root.is_dir() else root.parent
    empty = [record.name for record in records if not len(record.boxes)]
    found = [name for name in empty if not (folder / label_name(name)).exists()]
    if not found:
        return []
    title = (
        f"{len(found)} of {len(records)} images in {split} have no label file, such as {found[0]}"
    )
    fix = "none needed if they contain no objects; otherwise add their label files"
    return [
        Finding(Severity.NOTE, "images_without_labels", title, fix, split, len(found), tuple(found))
    ]
