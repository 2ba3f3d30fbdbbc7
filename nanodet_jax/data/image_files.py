"""Image files that anyone may have made: read within bounds, and measured before decoded."""

import io
import stat
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

JPEG_START, JPEG_END, JPEG_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
GIF_STARTS = (b"GIF87a", b"GIF89a")
# Those of OpenCV whose header Pillow reads too. Others cannot be measured, so they are refused.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
BYTES_PER_PIXEL = 8  # of an image that is not compressed: four channels of 16 bits
HEADER_ROOM = 1 << 24  # bytes for metadata, color profiles, thumbnails


def read_bytes(path: Path, max_pixels: float) -> bytes:
    """Content of an image file.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is no regular file, so that reading might never end, or is larger than
        `max_pixels` could take.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is no regular file")
    if about.st_size > BYTES_PER_PIXEL * max_pixels + HEADER_ROOM:
        raise ValueError(f"{about.st_size / 1e6:.0f} MB are more than an image may take")
    return path.read_bytes()


def use_threads_of_ours() -> None:
    """Tell OpenCV that others share out the images and report what is wrong with them."""
    cv2.setNumThreads(0)  # its own threads would fight with those over the cores
    # It has lines of its own for each broken image, without its name.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Height and width as the header has them, None for no image. No pixel is decoded."""
    if data.startswith(GIF_STARTS):  # Pillow would make room for the first picture
        return int.from_bytes(data[8:10], "little"), int.from_bytes(data[6:8], "little")
    try:
        with _opened(data) as image:
            return image.height, image.width
    except Exception:  # Pillow raises whatever its parsers meet in a file that is no image
        return None


def shown_size(data: bytes, max_pixels: float) -> tuple[int, int] | None:
    """Height and width as decoded, turned as EXIF says; None for no image.

    An image over `max_pixels` is not turned: of a PNG, Pillow would decode all pixels for that.
    """
    size = stored_size(data)
    if size is None or size[0] * size[1] > max_pixels or data.startswith(GIF_STARTS):
        return size
    try:
        with _opened(data) as image:
            sideways = image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
    except Exception:  # as above
        return None
    return size[::-1] if sideways else size


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


def _opened(data: bytes) -> Image.Image:
    """The image with its header read. `Image.open` would also warn of, or refuse, large ones."""
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))  # AVIF: from Pillow 11.3 on
        if factory and accept and accept(data[:16]) is True:
            return factory(io.BytesIO(data), "")
    raise ValueError("no image of a known format")
