"""Object sizes at the network's input, and the number of priors that learn each object."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data import transforms
from nanodet_jax.data.buckets import buckets, input_matrix
from nanodet_jax.data.records import Record
from nanodet_jax.losses.criterion import build_criterion
from nanodet_jax.models.nanodet import priors_of
from nanodet_jax.runtime import backend
from nanodet_jax.structures import GroundTruth, Predictions

MAX_SAMPLE = 1000  # images whose boxes are assigned; COCO's 118,000 would take minutes
CHUNK = 4  # images assigned together; each needs an array [slots, priors]


class Objects(NamedTuple):
    """Objects at the network's input, without augmentation. Ignore regions are excluded."""

    labels: np.ndarray  # [n] int32
    sides: np.ndarray  # [n, 2] float32: width and height in pixels of the input

    @property
    def shorter(self) -> np.ndarray:
        """Shorter side in pixels: [n] float32."""
        return self.sides.min(axis=1)

    @property
    def size(self) -> np.ndarray:
        """Side of a square of the same area, in pixels: [n] float32."""
        return np.sqrt(self.sides.prod(axis=1))


def sample(records: Sequence[Record], limit: int = MAX_SAMPLE) -> list[Record]:
    """Return at most `limit` of the records, evenly spaced."""
    indices = np.linspace(0, len(records) - 1, min(limit, len(records))).astype(int)
    return [records[index] for index in indices]


def objects_at_input(records: Sequence[Record], config: Config) -> Objects:
    """Return the objects of records. The image sizes must be known."""
    labels, sides = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.float32)]
    for record in records:
        boxes = boxes_at_input(record, config)[~record.ignore]
        labels.append(record.labels[~record.ignore])
        sides.append(boxes[:, 2:] - boxes[:, :2])
    return Objects(np.concatenate(labels), np.concatenate(sides))


def boxes_at_input(record: Record, config: Config) -> np.ndarray:
    """Return the boxes of a record in pixels of the input: [n, 4] float32 xyxy."""
    matrix, filled = input_matrix((record.height, record.width), config)
    return transforms.warp_boxes(record.boxes, matrix, filled)


def priors_per_object(records: Sequence[Record], config: Config, num_classes: int) -> np.ndarray:
    """Return the number of priors assigned to each object of `objects_at_input`: [n] int.

    An assigner that uses predictions receives uniform predictions: the logits of all classes and
    distances are equal.
    """
    slots = max([1, *(len(record.boxes) for record in records)])
    ground_truths = [
        transforms.fill_slots(boxes_at_input(record, config), record.labels, record.ignore, slots)
        for record in records
    ]
    if not ground_truths:
        return np.zeros(0, int)
    criterion = build_criterion(config)
    if config.data.resize == "short_side":
        square = buckets(config.input_size)[-1]  # contains landscape and portrait images
        criterion = replace(criterion, priors=priors_of(config.model, square))
    num_priors = len(criterion.priors.centers)
    uniform = Predictions(
        jnp.zeros((num_priors, num_classes)),
        jnp.zeros((num_priors, 4, config.model.reg_max + 1)),
    )

    def count(ground_truth: GroundTruth) -> jax.Array:
        learned = criterion.assign((uniform,), ground_truth).gt_index
        return jnp.sum(learned[None] == jnp.arange(slots)[:, None], axis=1)

    stacked = jax.tree.map(lambda *parts: np.stack(parts), *ground_truths)
    counted = backend.jit(partial(jax.lax.map, count, batch_size=CHUNK))(stacked)
    return np.asarray(counted)[stacked.valid]
