"""Small datasets in COCO format with many classes or many boxes."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from configs import shapes
from nanodet_jax.config import Config

SIDE = 64


def write(
    folder: Path, *, classes: int, images: int, boxes: int, name: Callable[[int], str]
) -> None:
    """Write images of noise, and an `annotations.json` with `boxes` boxes in each image."""
    rng = np.random.default_rng(0)
    content: dict[str, list] = {"images": [], "annotations": []}
    content["categories"] = [{"id": id + 1, "name": name(id)} for id in range(classes)]
    for image in range(1, images + 1):
        file = f"{image}.png"
        cv2.imwrite(str(folder / file), rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        content["images"].append({"id": image, "file_name": file, "width": SIDE, "height": SIDE})
        for box in rng.uniform((0, 0, 4, 4), (40, 40, 24, 24), (boxes, 4)).tolist():
            id = len(content["annotations"]) + 1
            entry = {"id": id, "image_id": image, "category_id": id % classes + 1, "bbox": box}
            content["annotations"].append(entry)
    (folder / "annotations.json").write_text(json.dumps(content))


def config_of(folder: Path) -> Config:
    """Return a config of two steps of a tiny network that trains and validates on the dataset."""
    config = shapes.get_config()
    config.input_size = (SIDE, SIDE)
    config.model.channels, config.model.stacked_convs = 32, 1
    config.training.steps, config.training.warmup_steps = 2, 1
    data = config.data
    data.format, data.batch_size = "coco", 4
    data.train_images = data.val_images = str(folder)
    data.train_annotations = data.val_annotations = str(folder / "annotations.json")
    return config
