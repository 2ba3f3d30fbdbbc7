"""Builders of test inputs: tiny configs, sources in memory, and datasets on disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs import shapes
from nanodet_jax.config import Config
from nanodet_jax.data.faults import Fault
from nanodet_jax.data.records import Category, Record
from nanodet_jax.data.sources.in_memory import InMemorySource
from nanodet_jax.data.sources.yolo import YoloSource

EXIF_ORIENTATION = 0x0112

YOLO_YAML = "{train: images/train, val: images/val, names: [cat, dog, cow]}"
YOLO_LINE = "1 .5 .5 .25 .5\n"


def tiny_config(steps: int = 8, steps_per_epoch: int = 4, batch_size: int = 4) -> Config:
    """Return the config of a run of `steps` steps on shapes. A step takes about 20 ms."""
    config = shapes.get_config()
    config.input_size = (64, 64)
    config.model.channels = 32
    config.model.stacked_convs = 1
    config.data.train_size = steps_per_epoch * batch_size
    config.data.val_size = 6
    config.data.batch_size = batch_size
    config.training.steps = steps
    config.training.warmup_steps = 2
    config.training.eval_every = 1
    config.training.log_every = 1
    return config


def one_class_source(records: Sequence[Record]) -> InMemorySource:
    """Return a source of these records, whose labels must all be 0."""
    return InMemorySource((Category(1, "thing"),), records)


def exif(orientation: int) -> Image.Exif:
    """Return EXIF data with an orientation, 1 to 8."""
    data = Image.Exif()
    data[EXIF_ORIENTATION] = orientation
    return data


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return an image of uniform noise: [height, width, 3] uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_image(
    path: Path, pixels: np.ndarray | tuple[int, int] = (40, 30), orientation: int | None = None
) -> Path:
    """Write an image of uint8 RGB pixels, or a black one of (width, height). Create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", pixels) if isinstance(pixels, tuple) else Image.fromarray(pixels)
    image.save(path, **({} if orientation is None else {"exif": exif(orientation)}))
    return path


def write_coco(folder: Path, content: Any, images: Mapping[str, np.ndarray]) -> tuple[Path, Path]:
    """Write a dataset in COCO format, and return its folder of images and its annotation file.

    `content` is the content of the annotation file: a JSON value, or text.
    """
    (folder / "images").mkdir(parents=True)
    for name, pixels in images.items():
        write_image(folder / "images" / name, pixels)
    file = folder / "labels.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "images", file


def voc_xml(
    *objects: tuple[object, ...], filename: str = "", width: object = 100, height: object = 80
) -> str:
    """Return a VOC annotation; each object is (name, xmin, ymin, xmax, ymax)."""
    items = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size}{items}</annotation>"


def write_voc(
    annotations: Path, images: Path, xmls: Mapping[str, str], suffix: str = ".png"
) -> None:
    """Write xml files by stem, and a black image of 100 x 80 pixels for each."""
    annotations.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    for stem, text in xmls.items():
        (annotations / f"{stem}.xml").write_text(text)
        write_image(images / f"{stem}{suffix}", (100, 80))


def write_voc_split(root: Path, split: str, xmls: Mapping[str, str]) -> None:
    """Write a split in the layout `root/split/{images,annotations}`."""
    write_voc(root / split / "annotations", root / split / "images", xmls)


def write_yolo_image(
    root: Path,
    name: str,
    labels: str | None = YOLO_LINE,
    size: tuple[int, int] = (100, 80),
) -> None:
    """Write a black image of (width, height), and its label file unless `labels` is None."""
    write_image(root / name, size)
    if labels is not None:
        file = root / Path(name.replace("images/", "labels/")).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(labels)


def write_yolo(folder: Path) -> Path:
    """Write a dataset of one image to `folder/data`, next to another one, and return its folder."""
    root = folder / "data"
    write_yolo_image(root, "images/train/a.png")
    write_yolo_image(folder / "other", "images/train/b.png")
    (root / "data.yaml").write_text(YOLO_YAML)
    return root


def yolo_faults(root: Path) -> list[Fault]:
    """Return all faults that are reported when every record is read."""
    faults: list[Fault] = []
    list(YoloSource(root, "train", on_fault=faults.append))
    return faults
