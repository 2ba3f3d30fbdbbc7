"""From a source to batches: shuffled and augmented for training, grouped by shape to evaluate."""

from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data import transforms
from nanodet_jax.data.records import Record, Source, decode
from nanodet_jax.errors import UserError
from nanodet_jax.structures import Batch

PREFETCHED_BATCHES = 4


def steps_per_epoch(source: Source, batch_size: int) -> int:
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


def prepare_image(pixels: np.ndarray, matrix: np.ndarray, size, config: Config, color=None):
    """Pixels uint8 BGR warped to `size` and normalised, float32, without padding."""
    warped = transforms.warp_image(pixels, matrix, size, config.compat.pixel_index_warp)
    colored = transforms.color_image(warped, color or transforms.Color())
    return transforms.normalize(colored, config.data.mean, config.data.std)


class Augmented(grain.transforms.RandomMap):
    """A training example from a record and a random generator of its own."""

    def __init__(self, config: Config, slots: int):
        self.config = config
        self.slots = slots

    def random_map(self, record: Record, rng: np.random.Generator) -> Batch:
        """One image [H, W, 3] of the input size and its ground truth [G, ...]."""
        config = self.config
        pixels = decode(record)
        warp, color = transforms.sample(rng, config.augment)
        matrix, size = transforms.warp_matrix(
            warp, pixels.shape[:2], config.input_size, config.data.keep_ratio
        )
        image = prepare_image(pixels, matrix, size, config, color)
        boxes = transforms.warp_boxes(record.boxes, matrix, size)
        kept = np.full(len(boxes), True)
        if not config.compat.keep_lost_boxes:
            kept = transforms.is_visible(boxes)
        return Batch(
            images=transforms.pad(image, config.input_size),
            ground_truth=transforms.fill_slots(
                boxes[kept], record.labels[kept], record.ignore[kept], self.slots
            ),
        )


def training_batches(
    source: Source,
    config: Config,
    slots: int,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless batches; the one of a step depends on seed and step alone, not on the workers.

    Args:
      source: training images.
      config: batch size, seed, workers, input size and augmentation.
      slots: G.
      start_step: steps already done: the position in the data follows from it.
      process: index and number of the processes that share an epoch between them.

    Yields:
      Batches of the process's share of `config.data.batch_size` images, numpy.
    """
    index, count = process
    size = config.data.batch_size // count
    used = steps_per_epoch(source, config.data.batch_size) * size
    dataset = (
        grain.MapDataset.source(source)
        .seed(config.training.seed)
        .shuffle()[index::count][:used]
        .repeat()
        .random_map(Augmented(config, slots))
        .batch(size, drop_remainder=True)[start_step:]
    )
    # Images are made one by one in threads, so that read-ahead is counted in images.
    options = grain.ReadOptions(
        num_threads=config.data.workers, prefetch_buffer_size=PREFETCHED_BATCHES
    )
    return iter(dataset.to_iter_dataset(options))


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
    """
    matrix, size = transforms.warp_matrix(
        transforms.Warp(), pixels.shape[:2], config.input_size, config.data.keep_ratio
    )
    image = prepare_image(pixels, matrix, size, config)
    padded = transforms.pad(image, transforms.padded_size(size))
    return Prepared(padded, np.linalg.inv(matrix), np.array(pixels.shape[:2], np.int32))


class _Indexed:
    """Positions in a source, prepared; what the reading threads call."""

    def __init__(self, source: Source, config: Config):
        self.source = source
        self.config = config

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Prepared]:
        return index, prepare_for_inference(decode(self.source[index]), self.config)


def evaluation_batches(source: Source, config: Config) -> Iterator[EvaluationBatch]:
    """Every image once, in batches of one shape each."""
    options = grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=16)
    prepared = grain.MapDataset.source(_Indexed(source, config)).to_iter_dataset(options)
    waiting: dict[tuple[int, ...], list[tuple[int, Prepared]]] = {}
    for index, item in prepared:
        group = waiting.setdefault(item.image.shape, [])
        group.append((index, item))
        if len(group) == config.data.batch_size:
            yield stack(waiting.pop(item.image.shape), config.data.batch_size)
    for group in waiting.values():
        yield stack(group, config.data.batch_size)


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
