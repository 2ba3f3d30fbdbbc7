"""Split off some training images for validation, and record their names in the workdir."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nanodet_jax.config import Data
from nanodet_jax.data.duplicates import group_copies
from nanodet_jax.data.records import Record, Source
from nanodet_jax.errors import UserError
from nanodet_jax.files import read_json, write_json

SPLIT = "split.json"  # in the workdir
SPLIT_LIMIT = 1 << 26  # bytes; enough for the names of a million images
# Roboflow gives augmented copies of a.jpg names like a_jpg.rf.HASH.jpg. All copies stay in
# one split.
COPY = re.compile(r"\.rf\.\w+(?=\.\w+$)")


class SubsetSource:
    """A part of the images of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.categories = source.categories
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[self._indices[index]]

    def name(self, index: int) -> str:
        """Return the name of image `index`."""
        return self._source.name(self._indices[index])

    def num_boxes(self, index: int) -> int:
        """Return the number of boxes of image `index`, or an upper bound."""
        return self._source.num_boxes(self._indices[index])

    def image_size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of image `index`; 0 where it is unknown."""
        return self._source.image_size(self._indices[index])

    def ground_truth(self) -> dict[str, Any]:
        """Return the ground truth of the source, limited to these images."""
        content = self._source.ground_truth()
        ids = {self[index].image_id for index in range(len(self))}
        return {
            **content,
            "images": [image for image in content["images"] if image["id"] in ids],
            "annotations": [item for item in content["annotations"] if item["image_id"] in ids],
        }


class _Group(NamedTuple):
    """Copies of one image, which stay in one split."""

    indices: list[int]
    labels: set[int]  # of their objects


def split_source(source: Source, data: Data, kept: set[str] | None) -> tuple[Source, Source]:
    """Return the training and the validation images of a source.

    Args:
      source: all images.
      data: its `val_fraction` and `val_seed` are used.
      kept: names of the validation images chosen earlier; if None, they are chosen now.

    Raises:
      UserError: if either part is empty.
    """
    if kept is None:
        chosen = set(choose_validation(source, data.val_fraction, data.val_seed))
    else:
        chosen = {index for index in range(len(source)) if source[index].name in kept}
    rest = [index for index in range(len(source)) if index not in chosen]
    if kept is not None and not chosen:
        raise UserError(
            f"config.data.val_fraction={data.val_fraction:g}: none of the {len(source)} images is "
            f"listed as a validation image in the {SPLIT} of this run; use a different --workdir "
            "for different data"
        )
    if not chosen or not rest:
        raise UserError(
            f"config.data.val_fraction={data.val_fraction:g}: splits {len(source)} images into "
            f"{len(rest)} for training and {len(chosen)} for validation, but both need at least "
            "one; add images, or train without validation: --config.data.val_fraction=0 "
            "--config.data.val=none"
        )
    return SubsetSource(source, rest), SubsetSource(source, sorted(chosen))


def choose_validation(source: Source, fraction: float, seed: int) -> list[int]:
    """Return the indices of the images to validate on, in ascending order.

    The images are grouped by their rarest class, and each group is split by a hash of the file
    names. Images added later therefore move few existing images to the other part. A class that
    is the rarest class of at least two images occurs in both parts. Files with equal content, and
    Roboflow's augmented copies of an image, stay together and count as one image.
    """
    groups = _group_copies(source)
    counts = [0] * len(source.categories)
    for group in groups.values():
        for label in group.labels:
            counts[label] += 1
    strata: dict[int | None, list[str]] = {}
    for name, group in groups.items():
        rarest = min(group.labels, key=lambda label: (counts[label], label), default=None)
        strata.setdefault(rarest, []).append(name)

    chosen: list[int] = []
    covered: set[int] = set()  # classes of the chosen images
    seen = taken = 0
    order = sorted(strata, key=lambda label: (label is None, counts[label or 0], label or 0))
    for stratum in order:
        names = sorted(strata[stratum], key=lambda name: _hash(name, seed))
        seen += len(names)
        needed = int(stratum is not None and stratum not in covered and len(names) > 1)
        count = min(max(round(fraction * seen) - taken, needed), max(len(names) - 1, 0))
        taken += count
        for name in names[:count]:
            chosen += groups[name].indices
            covered |= groups[name].labels
    if not chosen and len(groups) > 1:  # for example, if no two images share their rarest class
        chosen = min(groups.items(), key=lambda item: _hash(item[0], seed))[1].indices
    return sorted(chosen)


def _group_copies(source: Source) -> dict[str, _Group]:
    """Group the images of a source so that copies share a group, keyed by the original's name."""
    originals: dict[str, str] = {}  # names of originals, by image name
    files = []
    for index in range(len(source)):
        record = source[index]
        originals[record.name] = COPY.sub("", record.name)
        if isinstance(record.image, Path):  # records of other images would keep them in memory
            files.append(record)
    same: dict[str, str] = {}  # name of an equal original, by name of an original
    for group in group_copies(files):
        names = sorted({_follow(same, originals[record.name]) for record in group})
        same.update(dict.fromkeys(names[1:], names[0]))
    groups: dict[str, _Group] = {}
    for index in range(len(source)):
        record = source[index]
        name = _follow(same, originals[record.name])
        found = groups.setdefault(name, _Group([], set()))
        found.indices.append(index)
        found.labels.update(record.labels[~record.ignore].tolist())
    return groups


def _follow(same: dict[str, str], name: str) -> str:
    while name in same:
        name = same[name]
    return name


def _hash(name: str, seed: int) -> bytes:
    text = f"{seed}:{name}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def read_split(workdir: Path, data: Data) -> set[str] | None:
    """Return the names of the validation images in `split.json`; None if the file does not exist.

    Raises:
      UserError: if the file is damaged, or contains a different `val_fraction` or `val_seed`.
    """
    file = workdir / SPLIT
    if not file.exists():
        return None
    try:
        content = read_json(file, SPLIT_LIMIT)
        saved = content["val_fraction"], content["val_seed"]
        names = content["validation"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("validation is not a list of names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}); delete it to split the data again") from error
    for field, old, new in zip(
        ("val_fraction", "val_seed"), saved, (data.val_fraction, data.val_seed)
    ):
        if old != new:
            raise UserError(
                f"config.data.{field}={new!r}: the images of this run were split with {old!r} "
                f"({file}); set it to that value, or use a different --workdir"
            )
    return set(names)


def save_split(workdir: Path, data: Data, train: Source, val: Source) -> list[str]:
    """Write `split.json` if it is missing; otherwise return notes about images added or removed.

    An existing file is kept, so that training images never become validation images.
    """
    names = sorted({val[index].name for index in range(len(val))})
    count = len(train) + len(val)
    file = workdir / SPLIT
    if not file.exists():
        content = {"val_fraction": data.val_fraction, "val_seed": data.val_seed}
        write_json(file, {**content, "images": count, "validation": names}, indent=1)
        return []
    content = read_json(file, SPLIT_LIMIT)
    gone = sorted(set(content["validation"]) - set(names))
    notes = []
    if gone:
        notes.append(
            f"note: validation images that {file} lists but the data does not contain: "
            f"{len(gone)}, such as {gone[0]}"
        )
    before = content.get("images", count)
    if before != count:
        notes.append(
            f"note: {file} was written for {before} images, but now there are {count}; the "
            "validation images stay the same, and added images are used for training"
        )
    return notes
