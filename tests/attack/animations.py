"""Image files with several frames, built byte by byte. The first frame is the image.

10,000 frames are written quickly, because all frames after the first are the same few bytes.
"""

import io
import struct
import zlib
from typing import Any

from PIL import Image

SIZE = (64, 48)  # width, height
RED, GREEN = (255, 0, 0), (0, 255, 0)


def encoded(color: tuple[int, int, int], format: str, **options: Any) -> bytes:
    """Return an image of one color as a file."""
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, color).save(buffer, format, **options)
    return buffer.getvalue()


def gif(frames: int) -> bytes:
    """Return a red frame followed by green ones, as in the other functions."""

    def parts(color):
        data = encoded(color, "GIF")
        table = 13 + 3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 13
        return data[:table], data[table:-1]  # without the trailer

    head, red = parts(RED)
    _, green = parts(GREEN)
    return head + red + green * (frames - 1) + b";"


def apng(frames: int) -> bytes:
    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    def control(number):
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, *SIZE, 0, 0, 1, 10, 0, 0))

    def pixels(color):
        return zlib.compress((b"\0" + bytes(color) * SIZE[0]) * SIZE[1])

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">II", frames, 0)) + control(0) + chunk(b"IDAT", pixels(RED))
    green = pixels(GREEN)
    later = (
        control(number) + chunk(b"fdAT", struct.pack(">I", number + 1) + green)
        for number in range(1, 2 * frames - 1, 2)
    )
    return data + b"".join(later) + chunk(b"IEND", b"")


def webp(frames: int, canvas: tuple[int, int] = SIZE, exif: bytes = b"") -> bytes:
    def chunk(name, content):
        return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    def frame(color):
        place = bytes(6) + b"".join((side - 1).to_bytes(3, "little") for side in SIZE)
        return chunk(b"ANMF", place + (100).to_bytes(3, "little") + b"\0" + still[color])

    still = {color: encoded(color, "WEBP", lossless=True)[12:] for color in (RED, GREEN)}
    sides = b"".join((side - 1).to_bytes(3, "little") for side in canvas)
    flags = 0x02 | (0x08 if exif else 0)
    body = chunk(b"VP8X", struct.pack("<I", flags) + sides) + chunk(b"ANIM", bytes(6))
    body += frame(RED) + frame(GREEN) * (frames - 1) + (chunk(b"EXIF", exif) if exif else b"")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def tiff(frames: int) -> bytes:
    """Return pages that share two strips of pixels."""
    width, height = SIZE
    red, green = (bytes(color) * (width * height) for color in (RED, GREEN))
    bits = struct.pack("<HHH", 8, 8, 8)
    start = 8 + len(red) + len(green) + len(bits)
    pages, length = [], 2 + 10 * 12 + 4
    for page in range(frames):
        offset = 8 + (len(red) if page else 0)
        entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, start - len(bits)),
                   (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, offset), (277, 3, 1, 3),
                   (278, 4, 1, height), (279, 4, 1, len(red)), (284, 3, 1, 1)]  # fmt: skip
        following = start + length * (page + 1) if page + 1 < frames else 0
        packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        pages.append(struct.pack("<H", len(entries)) + packed + struct.pack("<I", following))
    return struct.pack("<2sHI", b"II", 42, start) + red + green + bits + b"".join(pages)


def mpo(frames: int) -> bytes:
    later = [Image.new("RGB", SIZE, GREEN)] * (frames - 1)
    return encoded(RED, "MPO", save_all=True, append_images=later)


MAKERS = {"gif": gif, "png": apng, "webp": webp, "tif": tiff, "jpg": mpo}
