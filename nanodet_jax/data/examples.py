"""Training examples: augmented images and ground truth, made from records and random numbers.

Host and device augmentation draw the same random numbers and give the same ground truth. They
differ only in where the pixels are transformed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data import transforms
from nanodet_jax.data.buckets import bucket_of, short_side_size
from nanodet_jax.data.cache import TrainingImages, reduced_size, stack_on_canvases
from nanodet_jax.data.records import Record, decode
from nanodet_jax.structures import Batch, GroundTruth, RawBatch


class _Warped(NamedTuple):
    pixels: np.ndarray  # [h, w, 3] uint8 BGR, the part of the input that the image fills
    color: transforms.Color
    ground_truth: GroundTruth  # [G, ...]


class HostExamples:
    """Examples augmented on the host: `draw` warps them, and `batch` transforms their colors."""

    def __init__(self, config: Config, slots: int, images: TrainingImages) -> None:
        self._config, self._slots = config, slots

    def draw(self, indexed: tuple[int, Record], rng: np.random.Generator) -> _Warped:
        """Warp one example. `indexed` is the pair (index, decoded record)."""
        config, (_, record) = self._config, indexed
        warp, color = transforms.sample(rng, config.augment)
        if config.data.resize == "short_side":
            low, high = config.augment.short_side
            short_side = int(rng.integers(low, high, endpoint=True))
            filled = short_side_size((record.height, record.width), config.input_size, short_side)
            warped, matrix = transforms.resize(decode(record), filled, warp.flip)
        else:
            matrix, filled = _warp_matrix(record, warp, config)
            warped = transforms.warp_image(
                decode(record), matrix, filled, config.compat.pixel_index_warp
            )
        return _Warped(warped, color, _ground_truth(record, matrix, filled, config, self._slots))

    def batch(self, items: Sequence[_Warped]) -> Batch:
        """Transform the colors of B examples. The results are written directly to the batch."""
        data, input_size = self._config.data, self._config.input_size
        if data.resize == "short_side":
            input_size = bucket_of([item.pixels.shape[:2] for item in items], input_size)
        images = np.zeros((len(items), *input_size, 3), np.float32)
        for image, item in zip(images, items):
            height, width = item.pixels.shape[:2]
            colored = transforms.color_image(item.pixels, item.color)
            transforms.normalize(colored, data.mean, data.std, out=image[:height, :width])
        return Batch(images, _stack([item.ground_truth for item in items]))


class DeviceExamples:
    """Examples to augment on the device: pixels (or the index of a stored image) and parameters."""

    def __init__(self, config: Config, slots: int, images: TrainingImages) -> None:
        self._config, self._slots = config, slots
        self._largest, self._canvas = images.largest, images.canvas
        self._stored = config.data.cache == "device"

    def draw(self, indexed: tuple[int, Record], rng: np.random.Generator) -> RawBatch:
        """Return a `RawBatch` without a batch axis. `indexed` is as in `HostExamples.draw`."""
        config, (index, record) = self._config, indexed
        pixel_indices = config.compat.pixel_index_warp
        warp, color = transforms.sample(rng, config.augment)
        matrix, filled = _warp_matrix(record, warp, config)
        size = record.height, record.width
        reduced = reduced_size(size, self._largest)
        from_canvas = matrix
        if reduced != size:
            from_canvas = matrix @ transforms.reduced_to_original(size, reduced, pixel_indices)
        shrunk, from_shrunk = transforms.resampling(from_canvas, reduced, pixel_indices)
        return RawBatch(
            canvases=np.asarray(index, np.int32) if self._stored else decode(record),
            sizes=np.asarray(reduced, np.int32),
            shrunk=np.asarray(shrunk, np.int32),
            inverse_warps=transforms.inverse(from_shrunk),
            filled=np.asarray(filled, np.int32),
            colors=np.asarray(color, np.float32),
            ground_truth=_ground_truth(record, matrix, filled, config, self._slots),
        )

    def batch(self, items: Sequence[RawBatch]) -> RawBatch:
        """Stack B examples."""
        pixels, sizes, shrunk, inverse_warps, filled, colors, ground_truth = zip(*items)
        return RawBatch(
            np.stack(pixels) if self._stored else stack_on_canvases(pixels, self._canvas),
            np.stack(sizes),
            np.stack(shrunk),
            np.stack(inverse_warps),
            np.stack(filled),
            np.stack(colors),
            _stack(ground_truth),
        )


def _warp_matrix(
    record: Record, warp: transforms.Warp, config: Config
) -> tuple[np.ndarray, tuple[int, int]]:
    size = record.height, record.width
    return transforms.warp_matrix(warp, size, config.input_size, config.data.keep_ratio)


def _ground_truth(
    record: Record, matrix: np.ndarray, filled: tuple[int, int], config: Config, slots: int
) -> GroundTruth:
    boxes = transforms.warp_boxes(record.boxes, matrix, filled)
    kept = np.full(len(boxes), True)
    if not config.compat.keep_lost_boxes:
        kept = transforms.is_visible(boxes)
    ground_truth = transforms.fill_slots(
        boxes[kept], record.labels[kept], record.ignore[kept], slots
    )
    if config.data.resize == "short_side":
        padded = np.array(transforms.padded_size(filled), np.int32)
        return ground_truth._replace(padded_size=padded, image_size=np.array(filled, np.int32))
    return ground_truth


def _stack(ground_truth: Sequence[GroundTruth]) -> GroundTruth:
    """Stack the arrays of several images. An optional array is set for all of them or for none."""
    return GroundTruth(
        *(None if each[0] is None else np.stack(each) for each in zip(*ground_truth))
    )
