"""Read untrusted image files: limit the file size, and read the image size before decoding."""

import io
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from nanodet_jax.data.webp_header import is_webp, read_header
from nanodet_jax.files import open_regular, read_regular

JPEG_START, JPEG_END, JPEG_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
GIF_STARTS = (b"GIF87a", b"GIF89a")
# OpenCV formats whose headers Pillow can read too. GIF and WebP are missing, because Pillow would
# allocate memory for their pixels; their headers are read without Pillow. All other formats are
# rejected, because their size is unknown before decoding.
FORMATS = ("AVIF", "BMP", "DIB", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # files that count as images
# Suffixes of all files that `shown_size` and OpenCV can read.
READABLE_SUFFIXES = (
    ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
EXIF_ORIENTATION = 0x0112
TRANSPOSED = (5, 6, 7, 8)  # orientations that swap width and height
ROTATED = ("JPEG", "MPO", "PNG")  # OpenCV rotates these and WebP; Pillow rotates TIFF itself
BYTES_PER_PIXEL = 8  # of an uncompressed image: four channels of 16 bits
MAX_HEADER = 1 << 24  # bytes of metadata, color profiles and thumbnails


def read_bytes(path: Path, max_pixels: float) -> bytes:
    """Read an image file that is no larger than `max_pixels` uncompressed pixels plus metadata.

    Raises:
      OSError, ValueError: as in `read_regular`.
    """
    return read_regular(path, BYTES_PER_PIXEL * max_pixels + MAX_HEADER, "an image")


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Return the (height, width) in the header, or None if `data` is not an image.

    EXIF orientation is not applied. No pixels are decoded.
    """
    return _size(io.BytesIO(data), rotated=False)


def shown_size(image: bytes | Path) -> tuple[int, int] | None:
    """Return the (height, width) after decoding with OpenCV; None if `image` cannot be read.

    EXIF orientation is applied, as in OpenCV. Only the header is read; no pixels are decoded.
    """
    if isinstance(image, bytes):
        return _size(io.BytesIO(image), rotated=True)
    try:
        with open_regular(image) as stream:
            return _size(stream, rotated=True)
    except (OSError, ValueError):
        return None


def imdecode(data: bytes, flags: int) -> np.ndarray | None:
    """Decode an image with OpenCV: uint8 BGR [height, width, 3], or None if decoding fails."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # raised for empty data or too many pixels
        if error.code == cv2.Error.StsNoMem:  # not a fault of the image
            raise MemoryError from error
        return None


def is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG lacks its end marker. Any data may follow the marker.

    OpenCV 5 rejects such files itself; OpenCV 4 fills the rest of a JPEG with gray.
    """
    if data.startswith(PNG_START):
        return data.rfind(PNG_END) < 0
    if not data.startswith(JPEG_START):
        return False
    # Skip the segments before the scan, since a thumbnail in them also has an end marker.
    start = len(JPEG_START)
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] != bytes([JPEG_SCAN]):
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data.rfind(JPEG_END, start) < 0


def _size(stream: BinaryIO, rotated: bool) -> tuple[int, int] | None:
    start = stream.read(16)
    if start.startswith(GIF_STARTS):
        return int.from_bytes(start[8:10], "little"), int.from_bytes(start[6:8], "little")
    stream.seek(0)
    try:
        if is_webp(start):
            width, height, data = read_header(stream, MAX_HEADER)
        else:
            with _open_header(stream, start) as image:
                width, height, data = image.width, image.height, b""
                # image.getexif() would also read XMP, which OpenCV does not read. To find it in a
                # PNG, it would decode all pixels.
                if image.format in ROTATED:
                    data = image.info.get("exif", b"")
        exif = Image.Exif()
        exif.load(data if rotated else b"")
        transposed = exif.get(EXIF_ORIENTATION) in TRANSPOSED
        return (width, height) if transposed else (height, width)
    except Exception:  # Pillow's parsers raise many types
        return None


def _open_header(stream: BinaryIO, start: bytes) -> Image.Image:
    """Read the header of an image. Unlike `Image.open`, do not limit the number of pixels."""
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))  # AVIF needs Pillow 11.3 or later
        if factory and accept and accept(start) is True:
            return factory(stream, "")
    raise ValueError("not an image of a supported format")
