"""Workloads to measure: the network of a config, on noise images and random boxes.

The time depends on the number of box slots, but not on the content of the images.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanodet_jax import config
from nanodet_jax.cli.config_flags import load_config
from nanodet_jax.losses.criterion import Criterion, build_criterion
from nanodet_jax.models.nanodet import NanoDet, build_model
from nanodet_jax.state import init_variables
from nanodet_jax.structures import Batch, GroundTruth

CLASSES = 80
LEARNING_RATE = 1e-4  # low enough for a hundred steps on one batch to stay finite


@dataclass(frozen=True)
class Workload:
    """Network, precision and batch shape."""

    file: str  # config: FILE[:VARIANT]
    precision: str = "float32"
    batch: int = 8
    size: int = 0  # side of the input in pixels; 0: the config's
    slots: int = 30  # ground-truth slots per image, half of them filled on average

    def load(self) -> config.Config:
        """Return the config, with this precision and size and COCO's number of classes.

        Raises:
          UserError: if there is no such config, or it cannot have this precision or size.
        """
        loaded = load_config(self.file)
        loaded.model.num_classes = CLASSES
        if self.size:
            loaded.input_size = (self.size, self.size)
        loaded.precision = self.precision
        config.check(loaded)
        return loaded

    @property
    def label(self) -> str:
        """Prefix of the names of rows."""
        return f"{self.load().name} {self.precision}"


class Network:
    """Initialized network of a workload.

    Attributes:
      config: the config of the workload.
      model: the network, with the guidance if the config has one.
      variables: all variables for training, including the guidance.
      criterion: assignment and loss.
    """

    def __init__(self, workload: Workload) -> None:
        self.config: config.Config = workload.load()
        self.model: NanoDet = build_model(self.config.model, self.config.precision)
        self.variables: Any = init_variables(self.model, seed=0)
        self.criterion: Criterion = build_criterion(self.config)


def random_batch(workload: Workload, size: tuple[int, int]) -> Batch:
    """Draw noise images, and boxes with sides of 3 to 50 percent of the input's.

    The arrays are numpy arrays and always the same, because the seed is fixed.
    """
    random = np.random.default_rng(0)
    shape, sides = (workload.batch, workload.slots), np.array(size[::-1])
    corner = random.uniform(0, 0.8, (*shape, 2)) * sides
    extent = random.uniform(0.03, 0.5, (*shape, 2)) * sides
    truth = GroundTruth(
        boxes=np.concatenate([corner, corner + extent], -1)
        .clip(0, np.tile(sides, 2))
        .astype(np.float32),
        labels=random.integers(0, CLASSES, shape).astype(np.int32),
        valid=np.arange(workload.slots)
        < random.integers(1, workload.slots + 1, (workload.batch, 1)),
        ignore=np.zeros(shape, bool),
    )
    images = random.standard_normal((workload.batch, *size, 3), np.float32)
    return Batch(images, truth)


def on_device(batch: Batch) -> Batch:
    """Move a batch to the device."""
    return jax.tree.map(jnp.asarray, batch)
