"""Open the data source that a config names."""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from nanodet_jax.config import Config, Data, Format
from nanodet_jax.data.class_map import class_names, select_classes
from nanodet_jax.data.combine import CombinedSource
from nanodet_jax.data.faults import (
    NO_VALIDATION,
    Fault,
    FaultKind,
    OnFault,
    ignore_fault,
    raise_fault,
)
from nanodet_jax.data.records import Source
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.data.sources.coco_layout import find_split
from nanodet_jax.data.sources.shapes import ShapesSource
from nanodet_jax.data.sources.tfds import TfdsSource
from nanodet_jax.data.sources.voc import VocSource, require_voc_class_names, voc_class_names
from nanodet_jax.data.sources.yolo import YoloSource
from nanodet_jax.data.split import split_source
from nanodet_jax.errors import UserError
from nanodet_jax.terminal import say


def open_source(
    config: Config,
    split: str,
    on_fault: OnFault = raise_fault,
    validation: set[str] | None = None,
) -> Source:
    """Open the `train` or `val` split of `config.data`, with the classes that the config selects.

    Faults in the annotations are reported to `on_fault`. If it does not raise, the faulty entries
    are skipped.

    Args:
      config: its `data` and `input_size` are used.
      split: "train" or "val".
      on_fault: called for each fault.
      validation: with `val_fraction`, names of the validation images, as `read_split` returns
        them; if None, they are chosen now. If no image has one of these names, the data is assumed
        to be a different dataset, and the split "val" consists of all its images.

    Raises:
      UserError: if a path is not set, a class does not occur in the data, the split is empty, or
        the split is "val" and `config.data.val` is "none"; also any error of the source.
    """
    data = config.data
    if split == "val" and data.val == "none":
        raise UserError(
            "config.data.val=none: there are no validation images; set --config.data.val=given to "
            "use the validation split of the dataset, and add --config.data.root=FOLDER to use a "
            "different dataset; the AP on training images would be too high"
        )
    read = "train" if data.val_fraction else split

    def other_split() -> Collection[str]:
        """Return the class names of the other split, or () if it is not used or cannot be read."""
        if data.val_fraction or data.val == "none":
            return ()
        try:  # its faults are reported when that split is opened
            return class_names(
                _open_all(config, "val" if split == "train" else "train", ignore_fault)
            )
        except UserError:
            return ()

    source = _open_all(config, read, on_fault)
    exclude_empty = data.exclude_empty_classes and read == "train"
    source = select_classes(source, data, exclude_empty, other_split)
    if data.val_fraction:
        is_known = validation is None or any(
            source.name(index) in validation for index in range(len(source))
        )
        if split == "val" and not is_known:
            say(
                f"note: none of the {len(source)} images is a validation image of this run: using "
                "all of them"
            )
            return source
        train, val = split_source(source, data, validation)
        return train if split == "train" else val
    return source


def _open_all(config: Config, split: str, on_fault: OnFault) -> Source:
    """Open a split of the dataset, or of all `config.data.sources`, with all of its classes."""
    data = config.data
    if not data.sources:
        return _open(config, data, split, on_fault)
    opened, labels = [], []
    for entry in data.sources:
        format, _, root = entry.partition(":")
        one = replace(data, format=cast(Format, format), root=root, name="", val_annotations="")
        try:
            opened.append(_open(config, one, split, on_fault))
        except Fault as fault:
            if fault.kind is not FaultKind.NO_VALIDATION:
                raise
            # The others may have validation images, so say which one has none.
            raise Fault(fault.kind, f"config.data.sources: {entry}: {fault}") from fault
        labels.append(Path(root).name or root)
    repeated = Counter(labels)
    unique = [
        label if repeated[label] == 1 else f"{label}-{number}"
        for number, label in enumerate(labels, start=1)
    ]
    return CombinedSource(opened, unique)


def _open(config: Config, data: Data, split: str, on_fault: OnFault) -> Source:
    """Open a split of one dataset, with all of its classes."""
    links = data.follow_links
    match data.format:
        case "coco":
            if data.root:
                images, annotations = find_split(_path(data, "root", "the dataset"), split)
            else:
                images = _path(data, f"{split}_images", "the folder of images")
                annotations = _path(data, f"{split}_annotations", "the COCO json file")
            return CocoSource(images, annotations, follow_links=links, on_fault=on_fault)
        case "voc":
            root = _path(data, "root", "the folder that contains train/ and val/, or VOC2007/")
            classes = require_voc_class_names(root, follow_links=links, on_fault=on_fault)
            if split != "train":  # add the classes that only this split has, as other formats do
                found = voc_class_names(root, split, follow_links=links, on_fault=on_fault)
                classes = tuple(dict.fromkeys([*classes, *found]))
            return VocSource(root, split, classes, follow_links=links, on_fault=on_fault)
        case "yolo":
            root = _path(data, "root", "data.yaml, or the folder that contains it")
            return YoloSource(root, split, follow_links=links, on_fault=on_fault)
        case "tfds":
            root = _path(data, "root", "the TFDS data_dir, or the folder of the dataset")
            if split == "train":
                return TfdsSource(data.name, root, "train", None)
            official = Path(data.val_annotations).expanduser() if data.val_annotations else None
            return TfdsSource(data.name, root, "validation", official)
        case "shapes":
            count = data.train_size if split == "train" else data.val_size
            return ShapesSource(split, size=max(config.input_size), count=count)
        case _:
            formats = ", ".join(get_args(Format))
            raise UserError(f"config.data.format={data.format!r}: must be one of {formats}")


def _path(data: Data, field: str, meaning: str) -> Path:
    value = getattr(data, field)
    if not value:
        fix = f"set it to {meaning}: --config.data.{field}=PATH"
        if field.startswith("train_"):
            fix += ", or use the folder of the whole dataset: --config.data.root=FOLDER"
        if field.startswith("val_"):
            fix += f"; or {NO_VALIDATION}"
        raise UserError(f"config.data.{field}: is empty; {fix}")
    return Path(value).expanduser()
