"""Opening zip archives (`.pth` and `.npz` files) from untrusted sources, with bounded memory."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nanodet_jax.errors import UserError
from nanodet_jax.files import open_regular

# Largest list of members, in bytes. A file with 645 tensors needs 60 thousand. The limit allows 90
# thousand members, which take half a second to read.
MAX_LISTING = 4 << 20
START = b"PK\x03\x04"


@contextlib.contextmanager
def open_zip(path: Path, not_zip: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose members are uncompressed and, together, not larger than the file.

    Args:
      path: path of the archive.
      not_zip: error message for a file that does not start like a zip archive.

    Raises:
      UserError: if the file is not such an archive. The message does not contain the path.
      OSError: if the file cannot be opened.
      Exception: any type that zipfile raises on damaged bytes.
    """
    try:
        opened = open_regular(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    with opened as file:
        if file.read(len(START)) != START:
            raise UserError(not_zip)
        size = os.fstat(file.fileno()).st_size
        bounded = _BoundedReads(file)
        with zipfile.ZipFile(bounded) as archive:
            bounded.limit = size
            members = archive.infolist()
            # Neither torch.save nor this project compresses or encrypts members. Refuse such
            # members, because reading one could expand it.
            if any(info.compress_type or info.flag_bits & 1 for info in members):
                raise UserError(
                    "has compressed or encrypted members; save them uncompressed and unencrypted"
                )
            if sum(info.file_size for info in members) > size:
                raise UserError("damaged archive: its members claim more bytes than the file has")
            yield archive


class _BoundedReads:
    """A file wrapper that refuses to read more than `limit` bytes in one call.

    zipfile reads the list of members in one call, and allocates about 600 bytes for each member.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.limit = MAX_LISTING
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size > self.limit:
            raise UserError(f"its list of members has {size} bytes; the limit is {self.limit}")
        return self._file.read(size)
