"""Size and orientation of a WebP file, read from its header.

Format: https://developers.google.com/speed/webp/docs/riff_container

Pillow allocates two canvases before it returns the size of a WebP file, so a file of 100 bytes
could take gigabytes of memory.
"""

from typing import BinaryIO, NamedTuple

HAS_EXIF = 0x08  # flag in VP8X
JPEG_PREFIX = b"Exif\0\0"
MAX_CHUNKS = 1 << 16  # largest number searched for EXIF; an animation has one or two per frame


class Header(NamedTuple):
    """Size in pixels, and EXIF data, which may be empty."""

    width: int
    height: int
    exif: bytes


def is_webp(start: bytes) -> bool:
    """Return whether a file that starts with these bytes, at least 12, claims to be WebP."""
    return start.startswith(b"RIFF") and start[8:12] == b"WEBP"


def read_header(stream: BinaryIO, max_exif: int) -> Header:
    """Read the header of a WebP file.

    Args:
      stream: seekable, at the start of the file.
      max_exif: largest accepted size of the EXIF data, in bytes.

    Raises:
      ValueError: if the file is not a valid WebP file, or has more chunks or EXIF data than
        allowed.
    """
    if not is_webp(stream.read(12)):
        raise ValueError("not a WebP file")
    name, size = _next_chunk(stream)
    data = stream.read(10)
    if len(data) < min(size, 10) or size < 5:
        raise ValueError("a WebP file without a size")
    match name:
        case b"VP8X":
            width, height = (1 + int.from_bytes(data[i : i + 3], "little") for i in (4, 7))
            stream.seek(12 + 8 + size + size % 2)
            return Header(width, height, _exif(stream, max_exif) if data[0] & HAS_EXIF else b"")
        case b"VP8 " if data[3:6] == b"\x9d\x01\x2a":
            width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (6, 8))
            return Header(width, height, b"")
        case b"VP8L" if data[0] == 0x2F:
            bits = int.from_bytes(data[1:5], "little")
            return Header(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), b"")
    raise ValueError("a WebP file of an unknown kind")


def _exif(stream: BinaryIO, limit: int) -> bytes:
    for _ in range(MAX_CHUNKS):
        name, size = _next_chunk(stream)
        if not name:
            return b""
        if name == b"EXIF":
            if size > limit:
                raise ValueError("too much EXIF data")
            data = stream.read(size)
            # OpenCV ignores EXIF data that starts with the prefix used in JPEG files.
            return b"" if data.startswith(JPEG_PREFIX) else data
        stream.seek(size + size % 2, 1)
    raise ValueError("too many chunks")


def _next_chunk(stream: BinaryIO) -> tuple[bytes, int]:
    """Return the name and length of the next chunk. The name is empty at the end of the file."""
    head = stream.read(8)
    return (head[:4], int.from_bytes(head[4:], "little")) if len(head) == 8 else (b"", 0)
