"""Images in, detections on those images out: the network and what follows it, compiled."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jax
import numpy as np

from nanodet_jax.data.pipeline import EvaluationBatch
from nanodet_jax.inference import postprocess
from nanodet_jax.models.nanodet import NanoDet, priors_of
from nanodet_jax.runtime import backend
from nanodet_jax.structures import Array, Detections, Predictions

Detect = Callable[[Any, Array, Array, Array], Detections]


def make_detect(
    model: NanoDet, split: Callable[[Callable], Callable] = lambda detect: detect
) -> Detect:
    """A compiled function from a batch to its detections, once per shape of images.

    It takes variables, images [B, H, W, 3] as the network wants them, the matrices [B, 3, 3]
    from input to image pixels and the images' sizes [B, 2], height and width. Boxes are in the
    pixels of each image. `split` may map it over parts of the batch before it is compiled.
    """

    def detect(variables, images, inverse_warps, sizes) -> Detections:
        input_size = images.shape[1:3]
        predictions = cast(Predictions, model.apply(variables, images))
        boxes, scores = postprocess.decode(
            predictions, priors_of(model.model, input_size), input_size
        )
        found = jax.vmap(postprocess.non_maximum_suppression)(boxes, scores)
        return jax.vmap(postprocess.to_image)(found, inverse_warps, sizes)

    return backend.jit(split(detect))


def detect_batch(
    detect: Detect, variables: Any, batch: EvaluationBatch
) -> Iterator[tuple[int, Detections]]:
    """Position in the source and detections of each image, numpy, without empty slots."""
    return detect_batches(detect, variables, [batch])


def detect_batches(
    detect: Detect, variables: Any, batches: Iterable[EvaluationBatch]
) -> Iterator[tuple[int, Detections]]:
    """As `detect_batch` of one batch after another, each read while the device is at the next."""
    running: tuple[EvaluationBatch, Detections] | None = None
    for batch in batches:
        found = detect(variables, batch.images, batch.inverse_warps, batch.sizes)
        if running is not None:
            yield from _fetch(*running)
        running = batch, found
    if running is not None:
        yield from _fetch(*running)


def _fetch(batch: EvaluationBatch, found: Detections) -> Iterator[tuple[int, Detections]]:
    found = jax.device_get(found)  # of the whole batch at once
    for row, index in enumerate(batch.indices):
        count = int(np.sum(found.valid[row]))
        yield (
            index,
            Detections(
                boxes=found.boxes[row, :count],
                scores=found.scores[row, :count],
                labels=found.labels[row, :count],
                valid=found.valid[row, :count],
                truncated=found.truncated[row],
            ),
        )
