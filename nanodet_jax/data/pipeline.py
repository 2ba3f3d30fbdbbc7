"""Batches from a source: shuffled and augmented for training, grouped by shape for evaluation."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data import transforms
from nanodet_jax.data.buckets import bucket_of, short_side_size
from nanodet_jax.data.cache import TrainingImages
from nanodet_jax.data.examples import DeviceExamples, HostExamples
from nanodet_jax.data.grouped_order import GroupedOrder
from nanodet_jax.data.records import Record, Source, decode
from nanodet_jax.data.run_length import steps_per_epoch
from nanodet_jax.data.unreadable import UnreadableImages
from nanodet_jax.errors import UserError
from nanodet_jax.structures import Batch, RawBatch

PREFETCHED_BATCHES = 1  # in addition to one per worker
PREFETCHED_IMAGES = 16  # in evaluation


def count_slots(source: Source, limit: int) -> tuple[int, list[tuple[str, int]]]:
    """Return the number of ground-truth slots per image, and the images with more boxes.

    Args:
      source: training images.
      limit: number of slots; 0 means the largest number of boxes in any image, at least 1.

    Returns:
      The number of slots, and (image name, number of dropped boxes) for each image over the limit.
    """
    counts = [source.num_boxes(index) for index in range(len(source))]
    if not limit:
        return max([1, *counts]), []
    over = [
        (source[index].name, count - limit) for index, count in enumerate(counts) if count > limit
    ]
    return limit, over


def _make_read_options(config: Config, buffer_size: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=buffer_size)


class _Indexed:
    """Records with their indices, for the worker threads.

    Attributes:
      order: index of the record at each position; by default, the position itself.
    """

    def __init__(self, images: Source | TrainingImages, order: Sequence[int] | None = None) -> None:
        self.images = images
        self.order = range(len(images)) if order is None else order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[int, Record]:
        index = self.order[position]
        return index, self.images[index]


def _shuffled(images: Source | TrainingImages, config: Config) -> grain.MapDataset:
    """Return an endless dataset of (index, record) in random order.

    Each epoch has a different order, and leaves out the last images, which do not fill a batch.
    """
    data, seed = config.data, config.training.seed
    if data.resize == "short_side":
        sizes = [images.image_size(index) for index in range(len(images))]
        groups = [
            bucket_of([short_side_size(s, config.input_size)], config.input_size) for s in sizes
        ]
        order = GroupedOrder(groups, data.batch_size, seed)
        return grain.MapDataset.source(_Indexed(images, order)).seed(seed)
    used = steps_per_epoch(len(images), data.batch_size) * data.batch_size
    shuffled = grain.MapDataset.source(_Indexed(images)).seed(seed).shuffle()
    # The second slice [:] has no effect but stays: grain derives the seed of `random_map` from its
    # position in this chain, and a given seed must keep producing the same random numbers.
    return shuffled[:used][:].repeat()


def images_of_step(source: Source, config: Config, step: int) -> list[str]:
    """Return the names of the images of training step `step`, counted from 1."""
    size, order = config.data.batch_size, _shuffled(source, config)
    return [order[position][1].name for position in range((step - 1) * size, step * size)]


def training_batches(
    source: Source | TrainingImages,
    config: Config,
    slots: int,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch] | Iterator[RawBatch]:
    """Yield training batches endlessly.

    The batch of a step depends only on the data, the config and the step, not on the number of
    workers. If several processes share a batch, their parts, concatenated in process order, equal
    the batch of a single process.

    Args:
      source: training images. Pass `TrainingImages` to share a cache; cache=device requires it.
      config: batch size, seed, workers, input size and augmentation.
      slots: number of ground-truth slots per image.
      start_step: number of completed steps, which determines the position in the data.
      process: (process index, process count).

    Yields:
      With config.data.augment=device, a `RawBatch`, otherwise a `Batch`, of NumPy arrays: this
      process's part of a batch of `config.data.batch_size` images.

    Raises:
      UserError: if the images do not fill one batch, or config.data and config.augment make pixels
        too large; also as in `TrainingImages`.
    """
    transforms.check_pixels(config.data.mean, config.data.std, config.augment)
    process_index, process_count = process
    size = config.data.batch_size // process_count
    steps_per_epoch(len(source), config.data.batch_size)  # raises if there are too few images
    images = source if isinstance(source, TrainingImages) else TrainingImages(source, config)
    examples_class = DeviceExamples if config.data.augment == "device" else HostExamples
    examples = examples_class(config, slots, images)
    part = slice(process_index, None, process_count)
    dataset = (
        _shuffled(images, config)
        .random_map(examples.draw)
        .batch(size, drop_remainder=True, batch_fn=examples.batch)[part][start_step:]
    )
    # Each thread makes a whole batch. With a smaller buffer, some threads would be idle.
    buffer_size = config.data.workers + PREFETCHED_BATCHES
    return iter(dataset.to_iter_dataset(_make_read_options(config, buffer_size)))


class Prepared(NamedTuple):
    """Image ready for the network, and the transform back to its original pixels."""

    image: np.ndarray  # [H, W, 3] float32, padded
    inverse_warp: np.ndarray  # [3, 3] float64: input to image pixels
    size: np.ndarray  # [2] int32: height and width of the original image
    # [2] int32: height and width of the part of the input that the network does not ignore. None:
    # it ignores nothing.
    padded_size: np.ndarray | None = None


class EvaluationBatch(NamedTuple):
    """Batch of B images of one shape. Rows from `len(indices)` on are padding."""

    images: np.ndarray  # [B, H, W, 3] float32
    inverse_warps: np.ndarray  # [B, 3, 3] float32
    sizes: np.ndarray  # [B, 2] float32
    indices: list[int]  # of the images in the source
    padded_sizes: np.ndarray | None = None  # [B, 2] int32; see `Prepared`


def prepare_for_inference(pixels: np.ndarray, config: Config) -> Prepared:
    """Resize and normalize an image [h, w, 3] uint8 BGR for inference.

    With keep_ratio, each side is padded to the next multiple of 32, so that the detections do not
    depend on other images. With resize=short_side, the image is padded to a bucket (see
    `data.buckets`), but the network ignores the padding beyond the next multiples of 32.

    Raises:
      UserError: if config.data.mean and std make pixels too large.
    """
    data, image_size, input_size = config.data, pixels.shape[:2], config.input_size
    transforms.check_pixels(data.mean, data.std)
    if data.resize == "short_side":
        size = short_side_size(image_size, input_size)
        warped, matrix = transforms.resize(pixels, size)
    else:
        matrix, size = transforms.warp_matrix(
            transforms.Warp(), image_size, input_size, data.keep_ratio
        )
        warped = transforms.warp_image(pixels, matrix, size, config.compat.pixel_index_warp)
    image = transforms.normalize(
        transforms.color_image(warped, transforms.Color()), data.mean, data.std
    )
    canvas, padded_size = transforms.padded_size(size), None
    if data.resize == "short_side":
        padded_size, canvas = np.array(canvas, np.int32), bucket_of([size], input_size)
    return Prepared(
        transforms.pad(image, canvas),
        np.linalg.inv(matrix),
        np.array(image_size, np.int32),
        padded_size,
    )


def evaluation_batches(
    source: Source, config: Config, process: tuple[int, int] = (0, 1)
) -> Iterator[EvaluationBatch]:
    """Yield every readable image once, in batches of one shape each.

    Args:
      source: images.
      config: batch size, input size and resizing.
      process: (process index, process count); each process gets a part of the images, in batches
        of config.data.batch_size divided by the process count.

    Raises:
      UserError: if the fraction of unreadable images exceeds config.data.max_unreadable.
    """
    process_index, process_count = process
    size = max(1, config.data.batch_size // process_count)
    unreadable = UnreadableImages(len(source), config.data.max_unreadable)

    def prepare(indexed: tuple[int, Record]) -> tuple[int, Prepared | UserError]:
        index, record = indexed
        try:
            pixels = decode(record, config.data.max_megapixels)
        except UserError as error:
            return index, error.with_traceback(None)  # a traceback keeps pixels in memory
        return index, prepare_for_inference(pixels, config)

    images = grain.MapDataset.source(_Indexed(source))[process_index::process_count].map(prepare)
    prepared = images.to_iter_dataset(_make_read_options(config, PREFETCHED_IMAGES))
    waiting: dict[tuple[int, ...], list[tuple[int, Prepared]]] = {}
    for index, item in prepared:
        if isinstance(item, UserError):
            unreadable.add(index, item, "the image counts as having no detections")
            continue
        group = waiting.setdefault(item.image.shape, [])
        group.append((index, item))
        if len(group) == size:
            yield stack(waiting.pop(item.image.shape), size)
    for group in waiting.values():
        yield stack(group, size)


def stack(group: list[tuple[int, Prepared]], batch_size: int) -> EvaluationBatch:
    """Stack images of one shape into a batch, padded with images of zeros to `batch_size` images.

    Args:
      group: (index in the source, image) of 1 to `batch_size` images.
      batch_size: number of images in the batch.
    """
    empty = batch_size - len(group)
    first = group[0][1].image
    padded_sizes = None
    if group[0][1].padded_size is not None:
        parts = [item.padded_size for _, item in group if item.padded_size is not None]
        padded_sizes = np.stack(parts + parts[:1] * empty).astype(np.int32)
    return EvaluationBatch(
        images=np.stack([item.image for _, item in group] + [np.zeros_like(first)] * empty),
        inverse_warps=np.stack(
            [item.inverse_warp for _, item in group] + [np.eye(3)] * empty
        ).astype(np.float32),
        sizes=np.stack([item.size for _, item in group] + [np.zeros(2)] * empty).astype(np.float32),
        padded_sizes=padded_sizes,
        indices=[index for index, _ in group],
    )
