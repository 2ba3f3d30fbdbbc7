"""Reading all annotations and images of a split to collect its faults."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from nanodet_jax.config import Config
from nanodet_jax.data.faults import Fault, FaultKind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.records import Category, Record, Source, decode
from nanodet_jax.data.sources.clip import boxes_outside
from nanodet_jax.errors import UserError
from nanodet_jax.progress import track


class Scan(NamedTuple):
    """Content of a split, and its faults."""

    categories: tuple[Category, ...]  # empty if the split cannot be opened
    records: list[Record]  # of the readable images, with the decoded size and at most their path
    images: int  # number of images with usable annotations, readable or not
    faults: list[Fault]


def scan(config: Config, split: str, *, progress: bool = True) -> Scan:
    """Read the `train` or `val` split of `config.data`, and decode every image.

    Only `config.data.workers` images are in memory at a time.
    """
    faults: dict[str, Fault] = {}  # by message, to drop repetitions: some files are read twice

    def add(fault: Fault) -> None:
        # Copy it, because the traceback of a raised fault references pixels.
        faults[str(fault)] = Fault(fault.kind, str(fault), tolerated=fault.tolerated)

    try:
        source = open_source(config, split, add)
    except UserError as error:
        add(Fault(FaultKind.FILE, str(error)))
        return Scan((), [], 0, [*faults.values()])
    records = []

    def examine(index: int) -> tuple[Record | None, list[Fault]]:
        return _examine(source, index, config.data.max_megapixels)

    with ThreadPoolExecutor(config.data.workers) as pool:
        examined = pool.map(examine, range(len(source)))
        for record, found in track(examined, len(source), f"reading {split}", "images", progress):
            for fault in found:
                add(fault)
            if record is not None:
                records.append(record)
    return Scan(source.categories, records, len(source), [*faults.values()])


def _examine(
    source: Source, index: int, max_megapixels: float
) -> tuple[Record | None, list[Fault]]:
    try:
        record = source[index]
        height, width = decode(record, max_megapixels).shape[:2]
    except Fault as fault:
        return None, [fault]
    except UserError as error:
        return None, [Fault(FaultKind.UNREADABLE, str(error))]
    image = record.image if isinstance(record.image, Path) else b""
    record = replace(record, image=image, height=height, width=width)
    return record, [*boxes_outside(record), *_duplicates(record)]


def _duplicates(record: Record) -> Iterator[Fault]:
    labelled = zip(map(tuple, record.boxes.tolist()), record.labels.tolist())
    for (box, _), count in Counter(labelled).items():
        if count > 1:
            found = f"box {_text(box)} occurs {count} times with the same class"
            yield Fault(FaultKind.DUPLICATES, f"{_where(record)}: {found}", tolerated=True)


def _where(record: Record) -> str:
    return f"{record.name} (image {record.image_id})"


def _text(box: Iterable[float]) -> str:
    return f"[{', '.join(f'{float(x):g}' for x in box)}]"
