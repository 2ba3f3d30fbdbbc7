"""Read files within limits, and write them completely or not at all.

A dataset, a weight file or a workdir may come from an untrusted source. A path in it may name
an endless device or a blocking pipe, and a symbolic link may point to any of the user's files.
"""

import contextlib
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nanodet_jax.errors import UserError, reporting_write_errors

# Size limit of a json file in a workdir, in bytes. Enough for the metrics of 30 thousand classes
# whose names have the maximum length, or of 6 thousand if json escapes every character.
JSON_LIMIT = 8 << 20
# Windows lacks the first two flags. It hardly needs them: most of its users cannot create symbolic
# links, and its folders contain no named pipes.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; symbolic links to it are followed.

    Raises:
      OSError: if it cannot be opened.
      ValueError: if it is not a regular file, because reading it might block or never end.
    """
    _check_regular(os.stat(path).st_mode)  # do not even open a device
    file = os.fdopen(os.open(path, os.O_RDONLY | NO_WAIT | BINARY), "rb")
    try:
        _check_regular(os.fstat(file.fileno()).st_mode)
    except ValueError:
        file.close()
        raise
    return file


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError("is not a regular file")


def read_regular(path: Path, limit: float, what: str) -> bytes:
    """Read a file of at most `limit` bytes; `what` names the kind of file in errors.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is not a regular file, or is larger than `limit`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"has {size:,} bytes; the limit for {what} is {limit:,.0f}")
        return file.read(int(min(size, limit)))


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """Read a json file of at most `limit` bytes.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is not a regular file, is larger than `limit`, or is not json.
    """
    try:
        return json.loads(read_regular(path, limit, "a json file"))
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a new file, which replaces `path` if the context ends without an error.

    Missing folders are created. The data is written to a new file in the same folder, and that file
    is then renamed. So a reader never sees an incomplete file, and an error leaves the old file in
    place.
    If `path` is a symbolic link, the link is replaced and its target does not change.

    Raises:
      UserError: naming the path, if it cannot be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with reporting_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW | BINARY
        file = os.fdopen(os.open(temporary, flags, 0o666), "wb")
        try:
            with file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as json with `atomic_write`.

    Raises:
      UserError: naming the path, if it cannot be written.
      ValueError: if the value contains NaN or infinity, which json cannot represent.
    """
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    with atomic_write(Path(path)) as file:
        file.write(text.encode())


def make_folder(path: Path) -> Path:
    """Create a folder of a workdir if it is missing.

    Raises:
      UserError: if the folder cannot be created, or is a symbolic link. Writing through a link
        could overwrite or delete files elsewhere.
    """
    refuse_link(path)
    with reporting_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_link(path: Path) -> None:
    """Raise a UserError if `path` is a symbolic link.

    Raises:
      UserError: naming the link.
    """
    if path.is_symlink():
        raise UserError(
            f"{path}: is a symbolic link, which a workdir must not contain; replace it with the "
            "folder itself, or link the whole workdir"
        )
