"""Training images decoded once: kept in RAM within a budget, or handed to the device's memory."""

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
from nanodet_jax.data.unreadable import Unreadable
from nanodet_jax.errors import UserError

GB, MB = 1e9, 1e6
MEASURED = 16  # images, whose size stands for that of all
CHUNK = 16  # canvases handed over at once
ANY_SIZE = (sys.maxsize, sys.maxsize)


class TrainingImages:
    """Records with their pixels, decoded when asked for and kept as `config.data.cache` says.

    May be read by several threads. Pixels that are kept are read-only; which those are depends on
    the order of reading, the pictures do not. With augment=device no image is larger than
    `largest`: one that was is reduced, while `width` and `height` of its record stay its own.

    In the place of an image that cannot be read comes the next in the source that can, boxes and
    all: a function of the data and the index alone.

    Attributes:
      largest: (height, width) that pixels may have.
      canvas: (height, width) that holds them all; with augment=device only.

    Raises:
      UserError: if cache=device and they do not fit into config.data.cache_gb; when read, if more
        than config.data.max_unreadable of them cannot be.
    """

    def __init__(self, source: Source, config: Config) -> None:
        data = config.data
        self._source, self._workers = source, data.workers
        self._where, self._gb = data.cache, data.cache_gb
        self._room = data.cache_gb * GB if data.cache == "ram" else 0.0
        self._kept: dict[int, Record] = {}
        self._lock = threading.Lock()
        self._max_megapixels = data.max_megapixels
        self._unreadable = Unreadable(len(source), data.max_unreadable)
        self.largest, self.canvas = ANY_SIZE, (0, 0)
        if data.augment == "device":
            height, width = config.input_size
            self.largest = round(data.canvas * height), round(data.canvas * width)
            self.canvas = _canvas(source, self.largest)
        needed = self._canvas_bytes() / GB
        if data.cache == "device" and needed > data.cache_gb:
            raise UserError(
                f"config.data.cache_gb={data.cache_gb:g}: {len(source)} images of "
                f"{self.canvas[1]}x{self.canvas[0]} need {needed:.2f} GB of the device; "
                f"--config.data.cache_gb={needed + 0.005:.2f} allows it, a smaller "
                "--config.data.canvas needs less, --config.data.cache=ram needs none"
            )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        record = self._read(index)
        size = decode(record).nbytes
        with self._lock:
            if index not in self._kept and size <= self._room:
                self._room -= size
                self._kept[index] = record
        return record

    def _read(self, index: int) -> Record:
        place = index
        while True:  # ends, as the last that is left unreadable is an error
            try:
                return decoded(self._source[place], self.largest, self._max_megapixels)
            except UserError as error:
                self._unreadable.add(place, error, "the next readable image takes its place")
            place = (place + 1) % len(self)

    def canvases(self) -> Iterator[np.ndarray]:
        """All images in order, for cache=device: uint8 [n, Hc, Wc, 3], each in its upper left.

        From then on records come without their pixels.
        """
        options = grain.ReadOptions(num_threads=self._workers, prefetch_buffer_size=2 * CHUNK)
        records = iter(grain.MapDataset.source(self).to_iter_dataset(options))
        for start in range(0, len(self), CHUNK):
            chunk = [next(records) for _ in range(start, min(start + CHUNK, len(self)))]
            yield on_canvases([decode(record) for record in chunk], self.canvas)
            for index, record in enumerate(chunk, start):
                self._kept[index] = replace(record, image=b"")

    def describe(self) -> str:
        """A line on what is kept, for which a few images are decoded."""
        if self._where == "device":
            size = f"{self.canvas[1]}x{self.canvas[0]}"
            gb = self._canvas_bytes() / GB
            return f"cache: {len(self)} images of {size} take {gb:.2f} GB of the device"
        count = min(MEASURED, len(self))
        places = np.linspace(0, len(self) - 1, count).astype(int).tolist()
        each = float(np.mean([decode(self[place]).nbytes for place in places]))
        measured = f"{each / MB:.2f} MB an image ({count} measured)"
        if self._where == "none":
            return f"cache: none; {measured}, decoded every time"
        fit = min(len(self), int(self._gb * GB / each))
        return f"cache: {measured}; {fit} of {len(self)} fit in {self._gb:g} GB of RAM"

    def _canvas_bytes(self) -> int:
        return 3 * len(self) * self.canvas[0] * self.canvas[1]


def decoded(record: Record, largest: tuple[int, int], max_megapixels: float) -> Record:
    """The record with its pixels, read-only, and the size of its image as decoded.

    Pixels beyond `largest`, (height, width), are reduced to it, each axis by itself: a warp can
    undo that.
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
    """Height and width of an image's pixels where none may be larger than `largest`."""
    return min(size[0], largest[0]), min(size[1], largest[1])


def on_canvases(images: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Images of several sizes in the upper left corners of black ones: uint8 [n, *size, 3]."""
    canvases = np.zeros((len(images), *size, 3), np.uint8)
    for canvas, image in zip(canvases, images):
        canvas[: image.shape[0], : image.shape[1]] = image
    return canvases


def _canvas(source: Source, largest: tuple[int, int]) -> tuple[int, int]:
    """The size that holds every image, in multiples of 32 to be the same for similar data."""
    sizes = np.array([source.image_size(index) for index in range(len(source))]).reshape(-1, 2)
    if not sizes.all():  # unknown before they are read
        return padded_size(largest)
    rows, columns = np.minimum(sizes.max(axis=0), largest).tolist()
    return padded_size((rows, columns))
