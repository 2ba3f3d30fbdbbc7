"""Image files that anyone may have made: read within bounds, and measured before decoded."""

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
# Those of OpenCV whose header Pillow reads too. Others cannot be measured, so they are refused.
# GIF and WebP are measured by ourselves, since Pillow would allocate their pixels first.
FORMATS = ("AVIF", "BMP", "DIB", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # where folders are searched
EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
TURNED = ("JPEG", "MPO", "PNG")  # and WebP: OpenCV turns these; Pillow turns a TIFF
BYTES_PER_PIXEL = 8  # of an image that is not compressed: four channels of 16 bits
HEADER_ROOM = 1 << 24  # bytes for metadata, color profiles, thumbnails


def read_bytes(path: Path, max_pixels: float) -> bytes:
    """Content of an image file.

    Raises:
      OSError, ValueError: as `read_regular`, if it is larger than `max_pixels` could take.
    """
    return read_regular(path, BYTES_PER_PIXEL * max_pixels + HEADER_ROOM, "an image")


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Height and width as the header has them, None for no image. No pixel is decoded."""
    return _size(io.BytesIO(data), turned=False)


def shown_size(image: bytes | Path) -> tuple[int, int] | None:
    """Height and width as OpenCV decodes it, turned as EXIF says; None for no image.

    No pixel is decoded, and of a file no more is read than its header.
    """
    if isinstance(image, bytes):
        return _size(io.BytesIO(image), turned=True)
    try:
        with open_regular(image) as stream:
            return _size(stream, turned=True)
    except (OSError, ValueError):
        return None


def imdecode(data: bytes, flags: int) -> np.ndarray | None:
    """OpenCV's pixels, uint8 BGR [height, width, 3]; None if it knows no such image."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # raised for no bytes and for too many pixels; otherwise the answer is None
        return None


def is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end marker; anything may follow the marker.

    OpenCV 5 refuses such files itself (as no images), OpenCV 4 fills a JPEG with grey.
    """
    if data.startswith(PNG_START):
        return data.rfind(PNG_END) < 0
    if not data.startswith(JPEG_START):
        return False
    # Segments before the scan are skipped, since a thumbnail in them has an end marker as well.
    start = len(JPEG_START)
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] != bytes([JPEG_SCAN]):
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data.rfind(JPEG_END, start) < 0


def _size(stream: BinaryIO, turned: bool) -> tuple[int, int] | None:
    start = stream.read(16)
    if start.startswith(GIF_STARTS):
        return int.from_bytes(start[8:10], "little"), int.from_bytes(start[6:8], "little")
    stream.seek(0)
    try:
        if is_webp(start):
            width, height, data = read_header(stream, HEADER_ROOM)
        else:
            with _opened(stream, start) as image:
                width, height, data = image.width, image.height, b""
                # Not image.getexif(): it also looks into XMP, which OpenCV does not, and for that
                # it decodes all pixels of a PNG.
                if image.format in TURNED:
                    data = image.info.get("exif", b"")
        exif = Image.Exif()
        exif.load(data if turned else b"")
        sideways = exif.get(EXIF_ORIENTATION) in SIDEWAYS
        return (width, height) if sideways else (height, width)
    except Exception:  # Pillow raises whatever its parsers meet in a file that is no image
        return None


def _opened(stream: BinaryIO, start: bytes) -> Image.Image:
    """The image with its header read. `Image.open` would also warn of, or refuse, large ones."""
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))  # AVIF: from Pillow 11.3 on
        if factory and accept and accept(start) is True:
            return factory(stream, "")
    raise ValueError("no image of a known format")
