"""From a source to batches: shuffled and augmented for training, grouped by shape to evaluate."""

from collections.abc import Iterator, Sized
from typing import Any, NamedTuple

import grain
import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data import transforms
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.examples import ForDevice, OnHost
from nanodet_jax.data.records import Record, Source, decode
from nanodet_jax.data.unreadable import Unreadable
from nanodet_jax.errors import UserError
from nanodet_jax.structures import Batch, RawBatch

PREFETCHED_BATCHES = 1  # beyond those that are being made
PREFETCHED_IMAGES = 16  # of evaluation


def steps_per_epoch(source: Sized, batch_size: int) -> int:
    """Whole batches in the data; the rest of a shuffled epoch is left out, as in the original.

    Raises:
      UserError: if there is not even one.
    """
    steps = len(source) // batch_size
    if steps == 0:
        raise UserError(
            f"config.data.batch_size={batch_size}: there are only {len(source)} training images"
        )
    return steps


def count_slots(source: Source, limit: int) -> tuple[int, list[tuple[str, int]]]:
    """Ground-truth slots that hold every image, or `limit` if set and what then exceeds it.

    Returns:
      The number of slots, at least 1, and (image name, boxes left out) of images over the limit.
    """
    counts = [source.num_boxes(index) for index in range(len(source))]
    if not limit:
        return max([1, *counts]), []
    over = [
        (source[index].name, count - limit) for index, count in enumerate(counts) if count > limit
    ]
    return limit, over


def _reading(config: Config, ahead: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=ahead)


def _epochs(images: Any, config: Config) -> grain.MapDataset:
    """Positions or images of one epoch, shuffled; `repeat` shuffles the next ones otherwise."""
    return grain.MapDataset.source(images).seed(config.training.seed).shuffle()


def images_of_step(source: Source, config: Config, step: int) -> list[str]:
    """Names of the images of training step `step`, counted from 1."""
    size = config.data.batch_size
    used = steps_per_epoch(source, size) * size
    order = _epochs(range(len(source)), config)[:used].repeat()
    return [source[order[place]].name for place in range((step - 1) * size, step * size)]


class _Numbered:
    """Records with their positions; what the reading threads call."""

    def __init__(self, images: Source | TrainingImages):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Record]:
        return index, self.images[index]


def training_batches(
    source: Source | TrainingImages,
    config: Config,
    slots: int,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch] | Iterator[RawBatch]:
    """Endless batches; the one of a step depends on seed and step alone, not on the workers.

    The parts of all processes, put together in their order, are the batch of a single one.

    Args:
      source: training images; as `TrainingImages` to share what they keep, and for cache=device.
      config: batch size, seed, workers, input size and augmentation.
      slots: G.
      start_step: steps already done: the position in the data follows from it.
      process: index and number of the processes that share a batch between them.

    Yields:
      Batches of the process's share of `config.data.batch_size` images, numpy: `RawBatch` if they
      are to be augmented on the device.

    Raises:
      UserError: if there is no whole batch, or config.augment makes pixels that are too large.
    """
    transforms.check_pixels(config.data.mean, config.data.std, config.augment)
    index, count = process
    size = config.data.batch_size // count
    used = steps_per_epoch(source, config.data.batch_size) * config.data.batch_size
    images = source if isinstance(source, TrainingImages) else TrainingImages(source, config)
    augmented = ForDevice if config.data.augment == "device" else OnHost
    examples = augmented(config, slots, images)
    # Sliced twice to no effect: the seed that grain gives to `draw` follows from its place in this
    # chain, and the numbers that a seed of the config stands for are to stay what they were.
    dataset = (
        _epochs(_Numbered(images), config)[:used][:]
        .repeat()
        .random_map(examples.draw)
        .batch(size, drop_remainder=True, batch_fn=examples.batch)[index::count][start_step:]
    )
    # A thread makes a whole batch: with fewer asked for at once, some threads would have none.
    ahead = config.data.workers + PREFETCHED_BATCHES
    return iter(dataset.to_iter_dataset(_reading(config, ahead)))


class Prepared(NamedTuple):
    """An image ready for the network, and the way back to its own pixels."""

    image: np.ndarray  # [H, W, 3] float32, padded
    inverse_warp: np.ndarray  # [3, 3] float64: input to image pixels
    size: np.ndarray  # [2] int32: height and width of the image


class EvaluationBatch(NamedTuple):
    """B images of one shape; rows after `indices` are empty."""

    images: np.ndarray  # [B, H, W, 3] float32
    inverse_warps: np.ndarray  # [B, 3, 3] float32
    sizes: np.ndarray  # [B, 2] float32
    indices: list[int]  # positions of the images in the source


def prepare_for_inference(pixels: np.ndarray, config: Config) -> Prepared:
    """An image uint8 BGR as the network sees it without augmentation.

    With keep_ratio it is padded to the next multiple of 32 of its own size, so that what is
    found in it does not depend on other images.

    Raises:
      UserError: if config.data.mean and std do not normalise.
    """
    transforms.check_pixels(config.data.mean, config.data.std)
    matrix, size = transforms.warp_matrix(
        transforms.Warp(), pixels.shape[:2], config.input_size, config.data.keep_ratio
    )
    warped = transforms.warp_image(pixels, matrix, size, config.compat.pixel_index_warp)
    image = transforms.normalize(
        transforms.color_image(warped, transforms.Color()), config.data.mean, config.data.std
    )
    padded = transforms.pad(image, transforms.padded_size(size))
    return Prepared(padded, np.linalg.inv(matrix), np.array(pixels.shape[:2], np.int32))


def evaluation_batches(
    source: Source, config: Config, process: tuple[int, int] = (0, 1)
) -> Iterator[EvaluationBatch]:
    """Every image once, in batches of one shape each; those that cannot be read are left out.

    Args:
      source: images.
      config: batch size, input size and resizing.
      process: index and number of the processes that share the images between them, and the size
        of a batch too.

    Raises:
      UserError: if that is more than config.data.max_unreadable of them.
    """
    share, count = process
    size = max(1, config.data.batch_size // count)
    unreadable = Unreadable(len(source), config.data.max_unreadable)

    def prepare(numbered: tuple[int, Record]) -> tuple[int, Prepared | UserError]:
        index, record = numbered
        try:
            pixels = decode(record, config.data.max_megapixels)
        except UserError as error:
            return index, error.with_traceback(None)  # which holds on to pixels
        return index, prepare_for_inference(pixels, config)

    images = grain.MapDataset.source(_Numbered(source))[share::count].map(prepare)
    prepared = images.to_iter_dataset(_reading(config, PREFETCHED_IMAGES))
    waiting: dict[tuple[int, ...], list[tuple[int, Prepared]]] = {}
    for index, item in prepared:
        if isinstance(item, UserError):
            unreadable.add(index, item, "nothing is detected in it")
            continue
        group = waiting.setdefault(item.image.shape, [])
        group.append((index, item))
        if len(group) == size:
            yield stack(waiting.pop(item.image.shape), size)
    for group in waiting.values():
        yield stack(group, size)


def stack(group: list[tuple[int, Prepared]], batch_size: int) -> EvaluationBatch:
    """Images of one shape as a batch, filled up with empty ones."""
    empty = batch_size - len(group)
    first = group[0][1].image
    return EvaluationBatch(
        images=np.stack([item.image for _, item in group] + [np.zeros_like(first)] * empty),
        inverse_warps=np.stack(
            [item.inverse_warp for _, item in group] + [np.eye(3)] * empty
        ).astype(np.float32),
        sizes=np.stack([item.size for _, item in group] + [np.zeros(2)] * empty).astype(np.float32),
        indices=[index for index, _ in group],
    )
