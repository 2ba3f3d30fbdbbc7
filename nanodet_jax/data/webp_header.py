"""Size and orientation of a WebP file, read from its header.

Pillow allocates two canvases before it tells the size of a WebP: a file of 100 bytes could take
gigabytes.
"""

from typing import BinaryIO, NamedTuple

HAS_EXIF = 0x08  # flag in VP8X
JPEG_PREFIX = b"Exif\0\0"
MOST_CHUNKS = 1 << 16  # that are skipped in search of EXIF: an animation has one or two per frame


class Header(NamedTuple):
    """Sides in pixels, and the EXIF data, empty if there is none."""

    width: int
    height: int
    exif: bytes


def is_webp(start: bytes) -> bool:
    """Whether a file with these first 16 bytes claims to be a WebP."""
    return start.startswith(b"RIFF") and start[8:12] == b"WEBP"


def read_header(stream: BinaryIO, most_exif: int) -> Header:
    """The header of a WebP file that `stream` stands at the start of.

    Args:
      stream: can be moved.
      most_exif: bytes that the EXIF data may take.

    Raises:
      ValueError: if it is no WebP, or has more chunks or EXIF data than allowed.
    """
    if not is_webp(stream.read(12)):
        raise ValueError("no WebP file")
    name, size = _next_chunk(stream)
    data = stream.read(10)
    if len(data) < min(size, 10) or size < 5:
        raise ValueError("a WebP file without a size")
    match name:
        case b"VP8X":
            width, height = (1 + int.from_bytes(data[i : i + 3], "little") for i in (4, 7))
            stream.seek(12 + 8 + size + size % 2)
            return Header(width, height, _exif(stream, most_exif) if data[0] & HAS_EXIF else b"")
        case b"VP8 " if data[3:6] == b"\x9d\x01\x2a":
            width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (6, 8))
            return Header(width, height, b"")
        case b"VP8L" if data[0] == 0x2F:
            bits = int.from_bytes(data[1:5], "little")
            return Header(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), b"")
    raise ValueError("a WebP file of an unknown kind")


def _exif(stream: BinaryIO, most: int) -> bytes:
    for _ in range(MOST_CHUNKS):
        name, size = _next_chunk(stream)
        if not name:
            return b""
        if name == b"EXIF":
            if size > most:
                raise ValueError("too much EXIF data")
            data = stream.read(size)
            # OpenCV ignores EXIF data with the prefix that they have in a JPEG.
            return b"" if data.startswith(JPEG_PREFIX) else data
        stream.seek(size + size % 2, 1)
    raise ValueError("too many chunks")


def _next_chunk(stream: BinaryIO) -> tuple[bytes, int]:
    """Name and length; no name at the end of the file."""
    head = stream.read(8)
    return (head[:4], int.from_bytes(head[4:], "little")) if len(head) == 8 else (b"", 0)
