"""Data of a run: both splits, the config completed from them, and the length of the run."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanodet_jax.config import Config
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.class_map import class_names, match_classes
from nanodet_jax.data.faults import FaultCounter
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import count_slots, training_batches
from nanodet_jax.data.records import Source
from nanodet_jax.data.run_length import RunLength, run_length
from nanodet_jax.data.split import read_split
from nanodet_jax.doctor.report import quick_warnings
from nanodet_jax.errors import UserError
from nanodet_jax.progress import track
from nanodet_jax.runtime import distributed
from nanodet_jax.structures import Array
from nanodet_jax.terminal import join_first
from nanodet_jax.training.parallel import make_augment


@dataclass(frozen=True)
class RunData:
    """Opened data of a run, and values that are derived from it."""

    config: Config  # resolved
    train: Source
    val: Source | None
    images: TrainingImages
    slots: int  # ground-truth slots per image
    images_over_limit: list[tuple[str, int]]  # names, and number of boxes that have no slot
    length: RunLength


def open_data(config: Config, workdir: Path) -> RunData:
    """Open the data that a config describes, and print notes about it.

    Args:
      config: already checked. It is not changed.
      workdir: folder of the run; it may contain the list of validation images.

    Raises:
      UserError: for data that cannot be used.
    """
    validation = read_split(workdir, config.data) if config.data.val_fraction else None
    faults = FaultCounter(), FaultCounter()
    train = open_source(config, "train", faults[0], validation=validation)
    val = None
    if config.data.val != "none":
        val = open_source(config, "val", faults[1], validation=validation)
        train, val = match_classes(train, val, exclude_empty=config.data.exclude_empty_classes)
    config = resolve(config, train, val)
    length = run_length(config, len(train))
    lines = quick_warnings(config, train, val)
    # With val_fraction, both splits are read from the same annotations.
    notes = faults[0].notes("train") + ([] if config.data.val_fraction else faults[1].notes("val"))
    for line in [*notes, *lines]:
        distributed.say(line)
    slots, over = count_slots(train, config.data.max_boxes)
    return RunData(config, train, val, TrainingImages(train, config), slots, over, length)


def resolve(config: Config, train: Source, val: Source | None) -> Config:
    """Copy a config and fill in what the data defines: the number of classes.

    Raises:
      UserError: if the config or the validation data disagrees with the training data.
    """
    names = class_names(train)
    if val is not None and class_names(val) != names:
        raise UserError(
            "training and validation data must have the same classes in the same order; got "
            f"{join_first(names)} for training, and {join_first(class_names(val))} for validation"
        )
    if config.model.num_classes not in (0, len(names)):
        raise UserError(
            f"config.model.num_classes={config.model.num_classes}: the data has {len(names)} "
            f"classes ({join_first(names)}); set it to 0 to use these"
        )
    resolved = copy.deepcopy(config)
    resolved.model.num_classes = len(names)
    return resolved


def batches_to_measure(data: RunData, count: int) -> Iterator[Array]:
    """Yield the images of `count` training batches, for measuring batch statistics.

    Every process builds the whole batches on the host, so they are the same in every process.
    """
    on_host = copy.deepcopy(data.config)
    on_host.data.augment, on_host.data.cache = "host", "none"
    batches, augment = training_batches(data.train, on_host, data.slots), make_augment(on_host)
    for _ in track(range(count), count, "measuring batch norms", "batches"):
        yield augment(next(batches)).images
