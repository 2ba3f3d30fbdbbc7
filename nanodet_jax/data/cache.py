"""Cache of decoded training images, in RAM up to a limit, or in device memory."""

import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import grain
import numpy as np

from nanodet_jax.config import Config
from nanodet_jax.data.records import Record, Source, decode
from nanodet_jax.data.transforms import padded_size
from nanodet_jax.data.unreadable import UnreadableImages
from nanodet_jax.errors import UserError

GB, MB = 1e9, 1e6
SAMPLE = 16  # images decoded to estimate the mean size
CHUNK = 16  # canvases per transfer
ANY_SIZE = (sys.maxsize, sys.maxsize)


class TrainingImages:
    """Decoded training records, cached according to `config.data.cache`; thread-safe.

    The order of access decides which images are cached. It does not affect their content. Pixels
    are read-only. With augment=device, images larger than `largest` are reduced to it, but `width`
    and `height` of their records give the size before reduction.

    An unreadable image and its boxes are replaced by the next readable image in the source and its
    boxes. The replacement depends only on the data and the index.

    Attributes:
      largest: largest (height, width) of the decoded pixels.
      canvas: (height, width) that every image fits into; (0, 0) unless augment=device.

    Raises:
      UserError: with cache=device, if the images exceed config.data.cache_gb; on access, if the
        fraction of unreadable images exceeds config.data.max_unreadable.
    """

    def __init__(self, source: Source, config: Config) -> None:
        data = config.data
        self._source, self._workers = source, data.workers
        self._cache, self._cache_gb = data.cache, data.cache_gb
        self._bytes_left = data.cache_gb * GB if data.cache == "ram" else 0.0
        self._kept: dict[int, Record] = {}
        self._lock = threading.Lock()
        self._max_megapixels = data.max_megapixels
        self._unreadable = UnreadableImages(len(source), data.max_unreadable)
        self.largest, self.canvas = ANY_SIZE, (0, 0)
        if data.augment == "device":
            height, width = config.input_size
            self.largest = round(data.canvas * height), round(data.canvas * width)
            sizes = [source.image_size(index) for index in range(len(source))]
            self.canvas = canvas_size(sizes, self.largest)
        needed = self._canvas_bytes() / GB
        if data.cache == "device" and needed > data.cache_gb:
            raise UserError(
                f"config.data.cache_gb={data.cache_gb:g}: {len(source)} images of "
                f"{self.canvas[1]}x{self.canvas[0]} need {needed:.2f} GB of device memory; "
                "lower config.data.canvas, or set --config.data.cache=ram or "
                f"--config.data.cache_gb={needed + 0.005:.2f}"
            )

    def __len__(self) -> int:
        return len(self._source)

    def image_size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of an image in the source, without decoding it."""
        return self._source.image_size(index)

    def __getitem__(self, index: int) -> Record:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        record = self._read(index)
        size = decode(record).nbytes
        with self._lock:
            if index not in self._kept and size <= self._bytes_left:
                self._bytes_left -= size
                self._kept[index] = record
        return record

    def _read(self, index: int) -> Record:
        candidate = index
        while True:  # ends, because `add` raises if no image is readable
            try:
                return decode_record(self._source[candidate], self.largest, self._max_megapixels)
            except UserError as error:
                self._unreadable.add(candidate, error, "replaced by the next readable image")
            candidate = (candidate + 1) % len(self)

    def canvases(self) -> Iterator[np.ndarray]:
        """Yield all images in order, in chunks of uint8 [n, Hc, Wc, 3], for cache=device.

        Each image is in the upper left corner of its canvas. Afterwards `self[index]` returns the
        record without pixels.
        """
        options = grain.ReadOptions(num_threads=self._workers, prefetch_buffer_size=2 * CHUNK)
        records = iter(grain.MapDataset.source(self).to_iter_dataset(options))
        for start in range(0, len(self), CHUNK):
            chunk = [next(records) for _ in range(start, min(start + CHUNK, len(self)))]
            yield stack_on_canvases([decode(record) for record in chunk], self.canvas)
            for index, record in enumerate(chunk, start):
                self._kept[index] = replace(record, image=b"")

    def describe(self) -> str:
        """Return a line about the size of the cache.

        Unless cache=device, the size is estimated from a few decoded images.
        """
        if self._cache == "device":
            size = f"{self.canvas[1]}x{self.canvas[0]}"
            gb = self._canvas_bytes() / GB
            return f"cache: {len(self)} images of {size} take {gb:.2f} GB of device memory"
        count = min(SAMPLE, len(self))
        indices = np.linspace(0, len(self) - 1, count).astype(int).tolist()
        mean_bytes = float(np.mean([decode(self[index]).nbytes for index in indices]))
        measured = f"{mean_bytes / MB:.2f} MB per image (mean of {count})"
        if self._cache == "none":
            return f"cache: none; {measured}, decoded each time"
        fit = min(len(self), int(self._cache_gb * GB / mean_bytes))
        return f"cache: {measured}; {fit} of {len(self)} fit in {self._cache_gb:g} GB of RAM"

    def _canvas_bytes(self) -> int:
        return 3 * len(self) * self.canvas[0] * self.canvas[1]


def decode_record(record: Record, largest: tuple[int, int], max_megapixels: float) -> Record:
    """Return the record with decoded, read-only pixels, and with the size before reduction.

    Images larger than `largest` (height, width) are reduced to it, each axis separately. The warp
    of the augmentation compensates for this.
    """
    pixels = decode(record, max_megapixels)
    height, width = pixels.shape[:2]
    rows, columns = reduced_size((height, width), largest)
    if (rows, columns) != (height, width):
        pixels = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    pixels = pixels.view()
    pixels.flags.writeable = False
    return replace(record, image=pixels, width=width, height=height)


def reduced_size(size: tuple[int, int], largest: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of an image reduced to at most `largest`."""
    return min(size[0], largest[0]), min(size[1], largest[1])


def stack_on_canvases(images: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Stack images, each in the upper left corner of a black canvas: [n, *size, 3] uint8."""
    canvases = np.zeros((len(images), *size, 3), np.uint8)
    for canvas, image in zip(canvases, images):
        canvas[: image.shape[0], : image.shape[1]] = image
    return canvases


def canvas_size(sizes: Sequence[tuple[int, int]], largest: tuple[int, int]) -> tuple[int, int]:
    """Return a (height, width) that every image fits into once it is reduced to `largest`.

    The sides are multiples of 32, so that adding images rarely changes the canvas. A size of 0
    means unknown.
    """
    known = np.array(sizes).reshape(-1, 2)
    if not known.all():  # sizes are unknown until the images are read
        return padded_size(largest)
    rows, columns = np.minimum(known.max(axis=0), largest).tolist()
    return padded_size((rows, columns))
