"""What a `checkpoints/` folder may contain, checked before it is read.

A workdir may come from a stranger. A digest tells that a file is what was written, not who wrote it
or that it makes sense, so everything is checked here as if it had none.
"""

import os
import re
import stat
from pathlib import Path
from typing import Any

from nanodet_jax.errors import UserError
from nanodet_jax.files import read_json, refuse_link
from nanodet_jax.io import checksums
from nanodet_jax.terminal import printable

STEP = re.compile("0|[1-9][0-9]{0,17}")  # within 64 bits
RECORD_LIMIT = 8 << 20  # bytes; that of nanodet-m has 0.17 MB
# A folder of nanodet-m, of 909 arrays and 11.5 MB, has 28 files and 8.5 MB. Where only the
# variables are asked for, the folder also holds what the optimizer keeps of each.
FILES_PER_ARRAY, FILES_BESIDES = 1, 200
SIZE_FACTOR, SIZE_PER_ARRAY, SIZE_BESIDES = 16, 8 << 10, 16 << 20
NAME = re.compile(r"(training|variables)(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
NAME_LENGTH = 500
DTYPE = re.compile("[a-z][a-z0-9_]{0,31}")
SHA256 = re.compile("[0-9a-f]{64}")
LONGEST_SHAPE = 16
LARGEST_SIZE = 1 << 40


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending; none if the folder is missing.

    A checkpoint is a folder named by its step, in decimal digits as Python writes them.

    Raises:
      UserError: if the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                int(entry.name)
                for entry in entries
                if STEP.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror or error}") from error


def refuse_links(folder: Path) -> None:
    """Check that neither `folder` nor an entry of it is a symbolic link.

    Raises:
      UserError: naming the link: files elsewhere would be read, moved or deleted through it.
    """
    refuse_link(folder)
    try:
        entries = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror or error}") from error
    for path in entries:
        if path.is_symlink():
            raise UserError(
                f"{folder}/{printable(path.name)}: is a symbolic link, which {folder.name}/ may "
                "not contain; delete it, or move what it leads to there"
            )


def check_folder(folder: Path, arrays: int, size: int) -> None:
    """Check that a folder has only regular files and folders, and no more than such arrays need.

    Args:
      folder: a checkpoint.
      arrays: how many are going to be read.
      size: of these, in bytes.

    Raises:
      OSError: if it cannot be looked through.
      ValueError: naming the first entry that is something else, or what there is too much of.
    """
    most = FILES_PER_ARRAY * arrays + FILES_BESIDES
    largest = SIZE_FACTOR * size + SIZE_PER_ARRAY * arrays + SIZE_BESIDES
    found, total, folders = 0, 0, [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                about = entry.stat(follow_symlinks=False)
                name = printable(os.path.relpath(entry.path, folder))
                if stat.S_ISDIR(about.st_mode):
                    folders.append(Path(entry.path))
                elif stat.S_ISREG(about.st_mode):
                    total += about.st_size
                else:
                    raise ValueError(f"{name} is not a regular file")
                found += 1
                if found > most:
                    raise ValueError(f"it has more than {most} files, too many for this model")
                if total > largest:
                    raise ValueError(
                        f"its files have more than {largest / 1e6:.0f} MB, too much for this model"
                    )


def read_record(path: Path) -> dict[str, Any]:
    """The record of a checkpoint: `version`, and whatever that version has besides.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is damaged.
    """
    try:
        record = checksums.verified(read_json(path, RECORD_LIMIT))
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(record, dict) or type(record.get("version")) is not int:
        raise ValueError("it has no version")
    return record


def check_arrays(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arrays that a record describes, as `checksums.of_arrays` does.

    Raises:
      ValueError: if it describes anything else.
    """
    if record.keys() != {"version", "arrays"} or not isinstance(record["arrays"], dict):
        raise ValueError("it describes no arrays")
    for name, about in record["arrays"].items():
        if len(name) > NAME_LENGTH or not NAME.fullmatch(name) or ".." in name:
            raise ValueError(f"{printable(name)} is no name of an array")
        if not isinstance(about, dict) or about.keys() != {"shape", "dtype", checksums.DIGEST}:
            raise ValueError(f"{name} is not described")
        if not _is_shape(about["shape"]):
            raise ValueError(f"{name} has no valid shape")
        if not isinstance(about["dtype"], str) or not DTYPE.fullmatch(about["dtype"]):
            raise ValueError(f"{name} has no valid dtype")
        digest = about[checksums.DIGEST]
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise ValueError(f"{name} has no valid digest")
    return record["arrays"]


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= LONGEST_SHAPE
        and all(type(length) is int and 0 <= length <= LARGEST_SIZE for length in shape)
    )
