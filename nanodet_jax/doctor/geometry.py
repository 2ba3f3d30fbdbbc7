"""Boxes as the network meets them: their size at its input, and the priors that learn them."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data import transforms
from nanodet_jax.data.records import Record
from nanodet_jax.losses.criterion import build_criterion
from nanodet_jax.runtime import backend
from nanodet_jax.structures import GroundTruth, Predictions

SAMPLE = 1000  # images whose boxes are assigned; COCO's 118,000 would take minutes
AT_ONCE = 4  # of them: an array of slots and priors each


class Objects(NamedTuple):
    """Boxes of n objects, ignore regions left out, at the network's input without augmentation."""

    labels: np.ndarray  # [n] int32
    sides: np.ndarray  # [n, 2] float32: width and height in pixels of the input

    @property
    def shorter(self) -> np.ndarray:
        """Shorter side [n]."""
        return self.sides.min(axis=1)

    @property
    def size(self) -> np.ndarray:
        """Side [n] of the square of the same area."""
        return np.sqrt(self.sides.prod(axis=1))


def sample(records: Sequence[Record], most: int = SAMPLE) -> list[Record]:
    """At most so many of the records, evenly spaced."""
    places = np.linspace(0, len(records) - 1, min(most, len(records))).astype(int)
    return [records[place] for place in places]


def objects(records: Sequence[Record], config: Config) -> Objects:
    """Objects of records whose sizes are known."""
    labels, sides = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.float32)]
    for record in records:
        boxes = at_input(record, config)[~record.ignore]
        labels.append(record.labels[~record.ignore])
        sides.append(boxes[:, 2:] - boxes[:, :2])
    return Objects(np.concatenate(labels), np.concatenate(sides))


def at_input(record: Record, config: Config) -> np.ndarray:
    """Boxes [n, 4] float32 of a record in pixels of the input."""
    matrix, filled = transforms.warp_matrix(
        transforms.Warp(), (record.height, record.width), config.input_size, config.data.keep_ratio
    )
    return transforms.warp_boxes(record.boxes, matrix, filled)


def priors_per_object(records: Sequence[Record], config: Config, num_classes: int) -> np.ndarray:
    """How many priors learn each of the objects of `objects(records, config)`: [n] int.

    As the config's assigner has it. Where predictions take part in that, they are those of a
    network that knows nothing yet: all classes alike, and all distances.
    """
    slots = max([1, *(len(record.boxes) for record in records)])
    each = [
        transforms.fill_slots(at_input(record, config), record.labels, record.ignore, slots)
        for record in records
    ]
    if not each:
        return np.zeros(0, int)
    criterion = build_criterion(config)
    num_priors = len(criterion.priors.centers)
    blank = Predictions(
        jnp.zeros((num_priors, num_classes)),
        jnp.zeros((num_priors, 4, config.model.reg_max + 1)),
    )

    def count(ground_truth: GroundTruth) -> jax.Array:
        learned = criterion.assign((blank,), ground_truth).gt_index
        return jnp.sum(learned[None] == jnp.arange(slots)[:, None], axis=1)

    stacked = GroundTruth(*(np.stack(part) for part in zip(*each)))
    counted = backend.jit(partial(jax.lax.map, count, batch_size=AT_ONCE))(stacked)
    return np.asarray(counted)[stacked.valid]
