"""Files: read within bounds, written wholly or not at all, never through a symbolic link.

What a data set, a file of weights or a workdir holds may come from a stranger. A name may be a
device that never ends or a pipe that blocks, and a link may lead to a file of the user's.
"""

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nanodet_jax.errors import UserError, writing

# Bytes of a json file in a workdir: the metrics of 30 thousand classes whose names are as long as
# they may be, or of 6 thousand if json escapes every letter.
JSON_LIMIT = 8 << 20
# Absent on Windows, which has neither such pipes nor, for most users, symbolic links.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, whichever links lead to it.

    Raises:
      OSError: if it cannot be opened.
      ValueError: if it is no regular file: reading it might block or never end.
    """
    _check_regular(os.stat(path).st_mode)  # a device is not even opened
    file = os.fdopen(os.open(path, os.O_RDONLY | NO_WAIT | BINARY), "rb")
    try:
        _check_regular(os.fstat(file.fileno()).st_mode)
    except ValueError:
        file.close()
        raise
    return file


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError("is no regular file")


def read_regular(path: Path, limit: float, what: str) -> bytes:
    """Read a file of at most `limit` bytes; `what` names its kind in the message.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is no regular file, or larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{size / 1e6:.0f} MB are more than {what} may take")
        return file.read(int(min(size, limit)))


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """Read a json file of at most `limit` bytes.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is no regular file, larger, or not json.
    """
    try:
        return json.loads(read_regular(path, limit, "such a file"))
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that replaces `path` once it is complete; folders are made.

    The data go to a new file in the same folder, which is then renamed. So a reader never sees half
    a file, an error leaves the old one in place, and where `path` is a symbolic link, the link is
    replaced and its target is not touched.

    Raises:
      UserError: naming the path, if it cannot be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with writing(path):
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
    """Write a value as json, as `replacing` does.

    Raises:
      UserError: naming the path, if it cannot be written.
      ValueError: on NaN or infinity, which json lacks.
    """
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    with replacing(Path(path)) as file:
        file.write(text.encode())


def make_folder(path: Path) -> Path:
    """Make a folder of a workdir if it is missing.

    Raises:
      UserError: if it cannot be made, or is a symbolic link, through which files elsewhere would
        be overwritten or deleted.
    """
    refuse_link(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_link(path: Path) -> None:
    """Raise a UserError if `path` is a symbolic link.

    Raises:
      UserError: naming the link.
    """
    if path.is_symlink():
        raise UserError(
            f"{path}: is a symbolic link, which a workdir may not contain; move the folder there, "
            "or link the whole workdir"
        )
