"""From a config to the data it names."""

from pathlib import Path
from typing import Any, get_args

from nanodet_jax.config import Config, Format
from nanodet_jax.data.faults import OnFault, refuse
from nanodet_jax.data.records import Source
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.data.sources.shapes import ShapesSource
from nanodet_jax.data.sources.tfds import TfdsSource
from nanodet_jax.data.sources.voc import VocSource, voc_classes
from nanodet_jax.data.sources.yolo import YoloSource
from nanodet_jax.errors import UserError


def open_source(config: Config, split: str, on_fault: OnFault = refuse) -> Source:
    """The `train` or `val` split of what `config.data` names.

    Readers of annotations tell their faults to `on_fault`; what they then leave out is what could
    not be used.

    Raises:
      UserError: if a path is not set, or for what the source itself refuses.
    """
    data = config.data
    reading: Any = {"follow_links": data.follow_links, "on_fault": on_fault}
    match data.format:
        case "coco":
            images = _path(config, f"{split}_images", "the folder of images")
            annotations = _path(config, f"{split}_annotations", "the COCO json file")
            return CocoSource(images, annotations, **reading)
        case "voc":
            root = _path(config, "root", "the folder with train/ and val/, or of VOC2007")
            return VocSource(root, split, data.classes or voc_classes(root, **reading), **reading)
        case "yolo":
            root = _path(config, "root", "data.yaml, or the folder that holds it")
            if data.classes:
                raise UserError(
                    "config.data.classes: with data.format=yolo data.yaml has the names"
                )
            return YoloSource(root, split, **reading)
        case "tfds":
            root = _path(config, "root", "the TFDS data_dir, or the data set's own folder")
            judge = Path(data.val_annotations).expanduser() if data.val_annotations else None
            if split == "train":
                return TfdsSource(data.name, root, "train", None)
            return TfdsSource(data.name, root, "validation", judge)
        case "shapes":
            count = data.train_size if split == "train" else data.val_size
            return ShapesSource(split, size=max(config.input_size), count=count)
        case _:
            raise UserError(f"config.data.format={data.format!r}: must be in {get_args(Format)}")


def _path(config: Config, field: str, meaning: str) -> Path:
    value = getattr(config.data, field)
    if not value:
        raise UserError(f"config.data.{field} is empty: give {meaning}, --config.data.{field}=PATH")
    return Path(value).expanduser()
