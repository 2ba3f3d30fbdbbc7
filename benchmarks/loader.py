"""The data loader alone: batches on the host, and augmentation on the device."""

import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.timing import Program, Row, peak_resident_mb
from benchmarks.workload import Workload
from nanodet_jax import config
from nanodet_jax.cli.config_flags import load_config
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import count_slots, training_batches
from nanodet_jax.data.run_length import steps_per_epoch
from nanodet_jax.training.parallel import make_augment, make_place_batch, upload_images

NUM_SHAPES = 512  # drawn images, if no photographs are given


def data_fields(images: Path | None, annotations: Path | None) -> dict[str, Any]:
    """Return fields of `config.data` for photographs in COCO format, or for shapes without them."""
    if images is None:
        return {"format": "shapes", "train_size": NUM_SHAPES, "val_size": 8}
    files = {"images": str(images), "annotations": str(annotations)}
    splits = ("train", "val")
    return {"format": "coco"} | {
        f"{split}_{what}": path for split in splits for what, path in files.items()
    }


def load(file: str, data: dict[str, Any], seconds: float) -> dict[str, Row]:
    """Load a config's augmented training batches as fast as possible.

    The measurement starts after one epoch, when the cache is filled.

    Args:
      file: FILE[:VARIANT] of the config.
      data: fields of `config.data` to set.
      seconds: duration of the measurement.

    Returns:
      One row: times per batch, and images per second of wall time and of CPU time.
    """
    loaded = _with_data(load_config(file), data)
    batch, source = loaded.data.batch_size, open_source(loaded, "train")
    batches = training_batches(source, loaded, count_slots(source, loaded.data.max_boxes)[0])
    for _ in range(steps_per_epoch(len(source), batch)):
        next(batches)
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        next(batches)
        count += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    row = {
        "wall_ms": 1e3 * wall / count,
        "cpu_ms": 1e3 * cpu / count,
        "images_per_second": count * batch / wall,
        "images_per_cpu_second": count * batch / cpu,
    }
    return {"": row | peak_resident_mb()}


def augment_on_device(workload: Workload, data: dict[str, Any]) -> dict[str, Program]:
    """Build the program that augments a batch on the device.

    Args:
      workload: determines the config.
      data: fields of `config.data` to set, including batch_size and augment=device.
    """
    loaded = _with_data(workload.load(), data)
    source = open_source(loaded, "train")
    images = TrainingImages(source, loaded)
    stored = upload_images(images) if loaded.data.cache == "device" else None
    slots = count_slots(source, loaded.data.max_boxes)[0]
    raw = make_place_batch()(next(training_batches(images, loaded, slots)))
    augment = make_augment(loaded, stored=stored)
    started = time.perf_counter()
    jax.block_until_ready(augment(raw))
    facts = {"first_s": time.perf_counter() - started}
    return {"": Program(lambda: augment(raw), facts, images=loaded.data.batch_size)}


def _with_data(loaded: config.Config, data: dict[str, Any]) -> config.Config:
    for field, value in data.items():
        setattr(loaded.data, field, value)
    config.check(loaded)
    return loaded
