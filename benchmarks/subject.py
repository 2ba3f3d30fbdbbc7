"""What is measured: the network of a config, on noise and random boxes.

What is in an image does not matter to the time; how many boxes it may have does.
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
LEARNING_RATE = 1e-4  # so low that a hundred steps on one batch leave every number finite


@dataclass(frozen=True)
class Subject:
    """A network, and the shape of what goes through it."""

    file: str  # of a config, FILE[:VARIANT]
    precision: str = "float32"
    batch: int = 8
    size: int = 0  # side of the input in pixels; 0: the config's
    slots: int = 30  # ground-truth slots of an image, half of them filled on average

    def load(self) -> config.Config:
        """The config, of this precision and size and with COCO's number of classes.

        Raises:
          UserError: if there is no such config, or if it cannot be so.
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
        """Of the rows of the table."""
        return f"{self.load().name} {self.precision}"


class Network:
    """A subject, built.

    Attributes:
      config: of the subject.
      model, variables: of the network in training.
      criterion: assignment and loss.
    """

    def __init__(self, subject: Subject):
        self.config: config.Config = subject.load()
        self.model: NanoDet = build_model(self.config.model, self.config.precision)
        self.variables: Any = init_variables(self.model, seed=0)
        self.criterion: Criterion = build_criterion(self.config)


def random_batch(subject: Subject, size: tuple[int, int]) -> Batch:
    """Noise and random boxes of 3 to 50 percent of the sides; numpy, the same every time."""
    random = np.random.default_rng(0)
    shape, sides = (subject.batch, subject.slots), np.array(size[::-1])
    corner = random.uniform(0, 0.8, (*shape, 2)) * sides
    extent = random.uniform(0.03, 0.5, (*shape, 2)) * sides
    truth = GroundTruth(
        boxes=np.concatenate([corner, corner + extent], -1)
        .clip(0, np.tile(sides, 2))
        .astype(np.float32),
        labels=random.integers(0, CLASSES, shape).astype(np.int32),
        valid=np.arange(subject.slots) < random.integers(1, subject.slots + 1, (subject.batch, 1)),
        ignore=np.zeros(shape, bool),
    )
    images = random.standard_normal((subject.batch, *size, 3), np.float32)
    return Batch(images, truth)


def on_device(batch: Batch) -> Batch:
    """The batch as arrays of the device, where a training step finds it."""
    return jax.tree.map(jnp.asarray, batch)
