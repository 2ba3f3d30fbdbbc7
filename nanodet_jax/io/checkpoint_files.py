"""Checks of a `checkpoints/` folder before its content is read.

A workdir may come from an untrusted source. A checksum shows that a file is unchanged. It does not
show who wrote it, or that its content is valid. These checks therefore do not rely on checksums.
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
RECORD_LIMIT = 8 << 20  # bytes; nanodet-m's record takes 0.17 MB
# A checkpoint of nanodet-m has 909 arrays with a total of 11.5 MB, in 28 files with a total of
# 8.5 MB. Even if only the variables are requested, the folder also contains the optimizer state of
# each variable.
FILES_PER_ARRAY, EXTRA_FILES = 1, 200
SIZE_FACTOR, SIZE_PER_ARRAY, EXTRA_SIZE = 16, 8 << 10, 16 << 20
NAME = re.compile(r"(training|variables)(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
NAME_LENGTH = 500
DTYPE = re.compile("[a-z][a-z0-9_]{0,31}")
SHA256 = re.compile("[0-9a-f]{64}")
MAX_DIMENSIONS = 16
MAX_LENGTH = 1 << 40


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in `folder`, ascending; none if the folder is missing.

    A checkpoint is a folder named after its step, in decimal digits without leading zeros.

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
    """Refuse a folder that is, or directly contains, a symbolic link.

    Raises:
      UserError: naming the link. Files elsewhere could be read, moved or deleted through it.
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
                "not contain; delete it, or replace it with its target"
            )


def check_folder(folder: Path, num_arrays: int, num_bytes: int) -> None:
    """Check that a checkpoint has only regular files and folders, and is not too large.

    Args:
      folder: folder of the checkpoint.
      num_arrays: number of arrays to read.
      num_bytes: total size of these arrays.

    Raises:
      OSError: if the folder cannot be listed.
      ValueError: naming the first entry of a different kind, or the limit that is exceeded.
    """
    max_files = FILES_PER_ARRAY * num_arrays + EXTRA_FILES
    max_size = SIZE_FACTOR * num_bytes + SIZE_PER_ARRAY * num_arrays + EXTRA_SIZE
    found, total, folders = 0, 0, [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                name = printable(os.path.relpath(entry.path, folder))
                if stat.S_ISDIR(status.st_mode):
                    folders.append(Path(entry.path))
                elif stat.S_ISREG(status.st_mode):
                    total += status.st_size
                else:
                    raise ValueError(f"{name} is not a regular file")
                found += 1
                if found > max_files:
                    raise ValueError(
                        f"it has over {max_files} files and folders, too many for this model"
                    )
                if total > max_size:
                    raise ValueError(
                        f"its files take more than {max_size / 1e6:.0f} MB, too much for this model"
                    )


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a checkpoint: its `version`, and the other keys of that version.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is damaged.
    """
    try:
        record = checksums.verify(read_json(path, RECORD_LIMIT))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(record, dict) or type(record.get("version")) is not int:
        raise ValueError("it has no version")
    return record


def check_arrays(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the array descriptions in a record, in the format of `checksums.describe_arrays`.

    Raises:
      ValueError: if the record contains anything else.
    """
    if record.keys() != {"version", "arrays"} or not isinstance(record["arrays"], dict):
        raise ValueError("it does not describe arrays")
    for name, description in record["arrays"].items():
        if len(name) > NAME_LENGTH or not NAME.fullmatch(name) or ".." in name:
            raise ValueError(f"{printable(name)} is not the name of an array")
        if not isinstance(description, dict) or description.keys() != {
            "shape",
            "dtype",
            checksums.DIGEST,
        }:
            raise ValueError(f"{name} has no valid description")
        if not _is_shape(description["shape"]):
            raise ValueError(f"{name} has no valid shape")
        if not isinstance(description["dtype"], str) or not DTYPE.fullmatch(description["dtype"]):
            raise ValueError(f"{name} has no valid dtype")
        digest = description[checksums.DIGEST]
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise ValueError(f"{name} has no valid digest")
    return record["arrays"]


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= MAX_DIMENSIONS
        and all(type(length) is int and 0 <= length <= MAX_LENGTH for length in shape)
    )
