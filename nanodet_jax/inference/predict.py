"""Compile the network with its postprocessing, and run it on batches of images."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jax
import numpy as np

from nanodet_jax.data.pipeline import EvaluationBatch
from nanodet_jax.inference import postprocess
from nanodet_jax.models.nanodet import NanoDet, priors_of
from nanodet_jax.runtime import backend
from nanodet_jax.runtime.out_of_memory import reporting_image_out_of_memory
from nanodet_jax.structures import Array, Detections, Predictions

# (variables, images [B, H, W, 3], inverse_warps [B, 3, 3], sizes [B, 2], padded_sizes [B, 2] or
# None) -> detections [B, N]
Detect = Callable[[Any, Array, Array, Array, Array | None], Detections]


def make_detect(
    model: NanoDet, split: Callable[[Detect], Detect] = lambda detect: detect
) -> Detect:
    """Return a compiled function from a batch of images to its detections.

    The function takes the variables of the model, normalized images [B, H, W, 3], matrices
    [B, 3, 3] from input pixels to image pixels, image sizes [B, 2] as height and width, and padded
    sizes: height and width [B, 2] of the part of each input that the network does not ignore, or
    None if it ignores nothing. It returns boxes in pixels of each image. The function is compiled
    once per shape of `images`.

    Args:
      model: the network.
      split: transforms the function before it is compiled, for example to map it over devices.
    """

    def detect(
        variables: Any,
        images: Array,
        inverse_warps: Array,
        sizes: Array,
        padded_sizes: Array | None,
    ) -> Detections:
        input_size = images.shape[1:3]
        predictions = cast(Predictions, model.apply(variables, images, padded_sizes=padded_sizes))
        priors = priors_of(model.model, input_size)
        if model.model.head == "simple_conv":
            return jax.vmap(
                lambda predictions, inverse_warp, size, padded_size: postprocess.gfl_detections_of(
                    predictions, priors, inverse_warp, size, padded_size
                )
            )(predictions, inverse_warps, sizes, padded_sizes)
        return jax.vmap(
            lambda predictions, inverse_warp, size: postprocess.detections_of(
                predictions, priors, input_size, inverse_warp, size
            )
        )(predictions, inverse_warps, sizes)

    return backend.jit(split(detect))


def detect_batch(
    detect: Detect, variables: Any, batch: EvaluationBatch
) -> Iterator[tuple[int, Detections]]:
    """For each image of a batch, yield its index in the source and its detections.
    Detections are numpy arrays of the n valid slots, best first.

    Raises:
      UserError: if the batch does not fit in memory.
    """
    with reporting_image_out_of_memory(*batch.images.shape[:3]):
        yield from detect_batches(detect, variables, [batch])


def detect_batches(
    detect: Detect, variables: Any, batches: Iterable[EvaluationBatch]
) -> Iterator[tuple[int, Detections]]:
    """Yield the results of `detect_batch` for each batch, in order.

    Each batch is dispatched before the results of the previous one are fetched, so that the device
    is not idle while the host unpacks results.
    """
    pending: tuple[EvaluationBatch, Detections] | None = None
    for batch in batches:
        detections = detect(
            variables, batch.images, batch.inverse_warps, batch.sizes, batch.padded_sizes
        )
        if pending is not None:
            yield from _fetch(*pending)
        pending = batch, detections
    if pending is not None:
        yield from _fetch(*pending)


def _fetch(batch: EvaluationBatch, detections: Detections) -> Iterator[tuple[int, Detections]]:
    """Copy the detections of a batch to the host in one transfer, and yield them by image."""
    detections = jax.device_get(detections)
    for row, index in enumerate(batch.indices):
        count = int(np.sum(detections.valid[row]))
        yield (
            index,
            Detections(
                boxes=detections.boxes[row, :count],
                scores=detections.scores[row, :count],
                labels=detections.labels[row, :count],
                valid=detections.valid[row, :count],
                truncated=detections.truncated[row],
            ),
        )
