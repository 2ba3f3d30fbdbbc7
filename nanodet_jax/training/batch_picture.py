"""Picture of a training batch."""

import numpy as np

from nanodet_jax import visualize
from nanodet_jax.config import Config
from nanodet_jax.data.records import Source
from nanodet_jax.structures import Batch

MAX_IMAGES = 16


def draw_batch(batch: Batch, config: Config, source: Source) -> np.ndarray:
    """Draw the first images of a batch, as the network receives them, with their boxes.

    Args:
      batch: numpy arrays on the host.
      config: provides the mean and std of the pixels, to undo the normalization.
      source: provides the class names.

    Returns:
      [height, width, 3] uint8 BGR.
    """
    names = [category.name for category in source.categories]
    drawn = []
    for image, boxes, labels, valid in zip(batch.images[:MAX_IMAGES], *batch.ground_truth[:3]):
        pixels = image * np.asarray(config.data.std) + np.asarray(config.data.mean)
        shown = np.clip(pixels, 0, 255).astype(np.uint8)
        drawn.append(visualize.draw_ground_truth(shown, boxes[valid], labels[valid], names))
    return visualize.grid(drawn, columns=4, size=(320, 320))
