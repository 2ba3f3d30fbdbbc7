"""Small datasets in COCO format with many classes or many boxes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nanodet_jax.config import Config
from tests.builders import tiny_config, write_coco

SIDE = 64


def write(
    folder: Path, *, classes: int, images: int, boxes: int, name: Callable[[int], str]
) -> None:
    """Write images of noise with `boxes` boxes each, and their annotations.

    `name` returns the name of a class by its index.
    """
    rng = np.random.default_rng(0)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": id + 1, "name": name(id)} for id in range(classes)]
    pixels = {}
    for image in range(1, images + 1):
        file = f"{image}.png"
        pixels[file] = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        content["images"].append({"id": image, "file_name": file, "width": SIDE, "height": SIDE})
        for box in rng.uniform((0, 0, 4, 4), (40, 40, 24, 24), (boxes, 4)).tolist():
            id = len(content["annotations"]) + 1
            entry = {"id": id, "image_id": image, "category_id": id % classes + 1, "bbox": box}
            content["annotations"].append(entry)
    write_coco(folder, content, pixels)


def config_of(folder: Path) -> Config:
    """Return the config of a run of two steps that trains and validates on such a dataset."""
    config = tiny_config(steps=2)
    config.training.warmup_steps = 1
    data = config.data
    data.format = "coco"
    data.train_images = data.val_images = str(folder / "images")
    data.train_annotations = data.val_annotations = str(folder / "labels.json")
    return config
