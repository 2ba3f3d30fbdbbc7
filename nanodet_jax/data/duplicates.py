"""Find duplicate images by comparing their bytes."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nanodet_jax.data.records import Record
from nanodet_jax.files import open_regular


def find_duplicates(train: Iterable[Record], val: Iterable[Record]) -> list[tuple[Record, Record]]:
    """Return a (train, val) record pair for each validation image that is also a training image.

    Two images count as the same if their files, encoded bytes or pixels are equal byte for byte.
    Only files whose size occurs in both splits are read. Files that cannot be read are left out.
    """
    train_sizes, val_sizes = _by_size(train), _by_size(val)
    pairs = []
    for size in sorted(train_sizes.keys() & val_sizes.keys()):
        known = {digest: record for record in train_sizes[size] if (digest := _digest(record))}
        for record in val_sizes[size]:
            other = known.get(_digest(record) or b"")
            if other is not None:
                pairs.append((other, record))
    return sorted(pairs, key=lambda pair: pair[1].name)


def group_copies(records: Iterable[Record]) -> list[list[Record]]:
    """Return each group of at least two records whose images have the same content.

    Only files that have the same size as another file are read. Files that cannot be read are left
    out.
    """
    groups = []
    for same_size in _by_size(records).values():
        if len(same_size) == 1:
            continue
        by_digest: dict[bytes, list[Record]] = {}
        for record in same_size:
            if digest := _digest(record):
                by_digest.setdefault(digest, []).append(record)
        groups += [group for group in by_digest.values() if len(group) > 1]
    return groups


def _by_size(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Group records by image size in bytes. Leave out images that are empty or cannot be read."""
    found: dict[int, list[Record]] = {}
    for record in records:
        image = record.image
        if isinstance(image, Path):
            try:
                size = os.stat(image).st_size
            except OSError:
                continue
        else:
            size = image.nbytes if isinstance(image, np.ndarray) else len(image)
        if size:
            found.setdefault(size, []).append(record)
    return found


def _digest(record: Record) -> bytes | None:
    """Return a hash of the bytes of an image, or None if they cannot be read."""
    image = record.image
    if not isinstance(image, Path):
        data = image.tobytes() if isinstance(image, np.ndarray) else image
        return hashlib.sha256(data).digest()
    try:
        with open_regular(image) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, ValueError):
        return None
