"""Read all annotations and images of a split to collect its faults."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from nanodet_jax.config import Config
from nanodet_jax.data.faults import Fault, FaultKind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.records import Category, Record, Source, decode, location_of
from nanodet_jax.data.sources.clip import boxes_outside, format_box
from nanodet_jax.errors import UserError
from nanodet_jax.progress import track


class Scan(NamedTuple):
    """Content of a split, and its faults."""

    categories: tuple[Category, ...]  # empty if the split cannot be opened
    records: list[Record]  # of the readable images, with the decoded size, without pixels
    images: int  # number of images with usable annotations, readable or not
    faults: list[Fault]
    unreadable: list[Record]  # of the unreadable images

    @property
    def annotated(self) -> list[Record]:
        """Records of all images, readable or not."""
        return [*self.records, *self.unreadable]


def scan(config: Config, split: str, *, progress: bool = True) -> Scan:
    """Read the `train` or `val` split of `config.data`, and decode every image.

    Only `config.data.workers` images are in memory at a time.
    """
    faults: dict[str, Fault] = {}  # by message, to drop repetitions: some files are read twice

    def add(fault: Fault) -> None:
        # Copy it, because the traceback of a raised fault keeps pixels in memory.
        faults[str(fault)] = Fault(fault.kind, str(fault), tolerated=fault.tolerated)

    try:
        source = open_source(config, split, add)
    except UserError as error:
        kind = FaultKind.CONFIG if str(error).startswith("config.") else FaultKind.FILE
        if isinstance(error, Fault) and error.kind is FaultKind.NO_VALIDATION:
            kind = error.kind
        add(Fault(kind, str(error)))
        return Scan((), [], 0, [*faults.values()], [])
    records: list[Record] = []
    unreadable: list[Record] = []

    def examine(index: int) -> _Examined:
        return _examine(source, index, config.data.max_megapixels)

    with ThreadPoolExecutor(config.data.workers) as pool:
        scanned = pool.map(examine, range(len(source)))
        for examined in track(scanned, len(source), f"reading {split}", "images", progress):
            for fault in examined.faults:
                add(fault)
            if examined.record is not None:
                (records if examined.decoded else unreadable).append(examined.record)
    return Scan(source.categories, records, len(source), [*faults.values()], unreadable)


class _Examined(NamedTuple):
    record: Record | None  # without pixels; None if its annotation cannot be read
    decoded: bool
    faults: list[Fault]


def _examine(source: Source, index: int, max_megapixels: float) -> _Examined:
    record = None
    try:
        record = source[index]
        image = record.image if isinstance(record.image, Path) else b""
        height, width = decode(record, max_megapixels).shape[:2]
    except UserError as error:
        fault = error if isinstance(error, Fault) else Fault(FaultKind.UNREADABLE, str(error))
        return _Examined(record and replace(record, image=image), False, [fault])
    record = replace(record, image=image, height=height, width=width)
    return _Examined(record, True, [*boxes_outside(record), *_duplicates(record)])


def _duplicates(record: Record) -> Iterator[Fault]:
    labeled = zip(map(tuple, record.boxes.tolist()), record.labels.tolist())
    for (box, _), count in Counter(labeled).items():
        if count > 1:
            found = f"box {format_box(box)} occurs {count} times with the same class"
            yield Fault(FaultKind.DUPLICATES, f"{location_of(record)}: {found}", tolerated=True)
