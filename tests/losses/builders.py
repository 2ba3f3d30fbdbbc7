"""Ground truth and predictions for the tests of assigners and losses."""

import jax
import numpy as np

from nanodet_jax import config
from nanodet_jax.structures import GroundTruth, Predictions

SIZE, CLASSES, REG_MAX = (64, 96), 3, 7  # of the images and networks that criteria are tested with
WEIGHTS = config.Loss(quality_focal=0.7, distribution_focal=0.4, giou=1.5)
PARTS = ("loss_qfl", "loss_bbox", "loss_dfl")
EMPTY: tuple[list, list] = ([], [])
# Objects and ignore regions of images: several objects, one wider than the largest distance; none;
# half of the image ignored; many objects in one place.
IMAGES = (
    ([[3, 5, 27, 30], [40, 8, 90, 60], [50, 20, 58, 29], [-250, 10, 350, 54]], []),
    EMPTY,
    ([[5, 5, 30, 40], [60, 10, 88, 50]], [[48, -50, 300, 300]]),
    ([[16, 16, 48, 48]] * 3 + [[20, 20, 20, 20], [700, 8, 720, 60], [0, 0, 96, 64]], []),
)


def ground_truth(objects=(), regions=(), labels=0, slots=8):
    """Ground truth of one image: objects, then ignore regions, then padding.

    Args:
      objects, regions: boxes, xyxy.
      labels: labels of the objects, or one label for all.
      slots: G.
    """
    boxes = np.zeros((slots, 4), np.float32)
    filled = [*objects, *regions]
    boxes[: len(filled)] = np.reshape(filled, (-1, 4))
    slot_labels = np.zeros(slots, np.int32)
    slot_labels[: len(objects)] = labels
    slot = np.arange(slots)
    valid = slot < len(objects)
    return GroundTruth(boxes, slot_labels, valid, ~valid & (slot < len(filled)))


def stack(images):
    """Stack images, each a tree of arrays, into a batch."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *images)


def batch_truth(images=IMAGES, slots=6):
    """Ground truth of a batch, with labels 1, 0, 2, 1, ... in each image."""
    labels = (np.arange(slots) * 2 + 1) % CLASSES
    return stack(
        ground_truth(objects, regions, labels[: len(objects)], slots) for objects, regions in images
    )


def random_predictions(images, priors, random):
    """Predictions of one branch; class scores are mostly low."""
    shape = images, len(priors.strides)
    return Predictions(
        random.normal(-2, 2, (*shape, CLASSES)).astype(np.float32),
        random.normal(0, 1.5, (*shape, 4, REG_MAX + 1)).astype(np.float32),
    )


def box_of(logits, center):
    """Box around a center, in strides: the expectation of the distribution of each side."""
    sides = []
    for side in logits:
        probabilities = np.exp(side) / np.sum(np.exp(side))
        sides.append(sum(k * probability for k, probability in enumerate(probabilities)))
    left, top, right, bottom = sides
    return center[0] - left, center[1] - top, center[0] + right, center[1] + bottom
