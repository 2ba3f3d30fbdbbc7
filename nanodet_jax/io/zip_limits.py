"""Zip archives of anyone's making, opened within bounds: what `.pth` and `.npz` files are."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nanodet_jax.errors import UserError
from nanodet_jax.files import open_regular

# Bytes of the list of members. One of 645 tensors takes 60 thousand; this has room for 90 thousand
# members at most, which take half a second.
MAX_LISTING = 4 << 20
START = b"PK\x03\x04"


@contextlib.contextmanager
def open_zip(path: Path, otherwise: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose members are stored as they are and together fit into the file.

    Raises:
      UserError: without the path, if it is not such an archive; with the text `otherwise`, if it
        does not even start as one.
      OSError: if it cannot be opened.
      Exception: what zipfile makes of damaged bytes.
    """
    try:
        opened = open_regular(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    with opened as file:
        if file.read(len(START)) != START:
            raise UserError(otherwise)
        size = os.fstat(file.fileno()).st_size
        bounded = _BoundedReads(file)
        with zipfile.ZipFile(bounded) as archive:  # type: ignore[call-overload]
            bounded.limit = size
            members = archive.infolist()
            # Neither torch.save nor this project compresses or encrypts: nothing grows when read.
            if any(info.compress_type or info.flag_bits & 1 for info in members):
                raise UserError("has compressed or encrypted members, which no such file has")
            if sum(info.file_size for info in members) > size:
                raise UserError("damaged archive: its members claim more bytes than the file has")
            yield archive


class _BoundedReads:
    """A file that refuses to read more than `limit` bytes at once.

    zipfile reads the list of members at once, and makes some 600 bytes of each.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.limit = MAX_LISTING
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size > self.limit:
            raise UserError(f"lists members in {size} bytes; {self.limit} are the most")
        return self._file.read(size)
