"""Open the data source that a config names."""

from pathlib import Path
from typing import get_args

from nanodet_jax.config import Config, Format
from nanodet_jax.data.faults import OnFault, raise_fault
from nanodet_jax.data.records import Source
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.data.sources.shapes import ShapesSource
from nanodet_jax.data.sources.tfds import TfdsSource
from nanodet_jax.data.sources.voc import VocSource, voc_classes
from nanodet_jax.data.sources.yolo import YoloSource
from nanodet_jax.errors import UserError


def open_source(config: Config, split: str, on_fault: OnFault = raise_fault) -> Source:
    """Open the `train` or `val` split of `config.data`.

    Faults of the annotations are reported to `on_fault`. If it does not raise, the entries at fault
    are skipped.

    Raises:
      UserError: if a path is not set, or if the source raises one.
    """
    data = config.data
    links = data.follow_links
    match data.format:
        case "coco":
            images = _path(config, f"{split}_images", "the folder of images")
            annotations = _path(config, f"{split}_annotations", "the COCO json file")
            return CocoSource(images, annotations, follow_links=links, on_fault=on_fault)
        case "voc":
            root = _path(config, "root", "the folder with train/ and val/, or VOC2007")
            classes = data.classes or voc_classes(root, follow_links=links, on_fault=on_fault)
            return VocSource(root, split, classes, follow_links=links, on_fault=on_fault)
        case "yolo":
            root = _path(config, "root", "data.yaml, or the folder that contains it")
            if data.classes:
                found = f"config.data.classes={data.classes}: data.yaml defines the classes"
                raise UserError(f"{found}; leave it empty")
            return YoloSource(root, split, follow_links=links, on_fault=on_fault)
        case "tfds":
            root = _path(config, "root", "the TFDS data_dir, or the folder of the dataset")
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


def _path(config: Config, field: str, meaning: str) -> Path:
    value = getattr(config.data, field)
    if not value:
        found = f"config.data.{field}: is empty"
        raise UserError(f"{found}; set it to {meaning}: --config.data.{field}=PATH")
    return Path(value).expanduser()
