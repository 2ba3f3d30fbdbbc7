"""Load 300 hostile images and annotations, and check that each one is handled and reported.

    python tests/tools/hostile_images.py [--folder FOLDER]

The script writes the files, loads the images as training and evaluation do, runs the doctor on
them, and prints the result for each kind and the memory used.
"""

import argparse
import io
import json
import os
import resource
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanodet_jax.config import Config
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import evaluation_batches, training_batches
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.doctor.scan import scan
from nanodet_jax.errors import UserError
from tests.builders import exif, write_image
from tests.tools import hostile_labels

SIZE = 64, 48  # width, height
# Limit on memory in addition to the program's, in bytes: two threads each hold two copies of an
# image of 50 megapixels with 3 bytes per pixel while they decode it.
MEMORY_BOUND = 2 * 50e6 * 6
READABLE, UNREADABLE = "readable", "unreadable"
EITHER = "either"  # a flipped bit may have no effect
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tif": "TIFF"}
NAN, INF = float("nan"), float("inf")


class Picture(NamedTuple):
    """Image file: its kind, the expected result, and its annotated size."""

    name: str
    kind: str
    expected: str
    size: tuple[int, int] = (0, 0)  # width, height


class Entry(NamedTuple):
    """Faulty entry of a COCO file, and the text with which a reported fault must name it."""

    kind: str
    named: str


def picture(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield small files whose headers declare hundreds or thousands of megapixels."""
    ihdr = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", ihdr)
    yield "png", start + png_chunk(b"IDAT", zlib.compress(bytes(999))) + png_chunk(b"IEND", b"")
    jpeg = bytearray(encoded(picture(), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = b"\xff\xff\xff\xff"
    yield "jpg", bytes(jpeg)
    bmp = bytearray(encoded(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    yield "bmp", bytes(bmp)
    gif = bytearray(encoded(picture("P"), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    yield "gif", bytes(gif)
    vp8x = struct.pack("<I", 0x10)[:4] + (16_383).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + vp8x
    yield "webp", b"RIFF" + struct.pack("<I", len(body)) + body
    entries = [(256, 4, 100_000), (257, 4, 100_000), (258, 3, 8), (259, 3, 1), (262, 3, 1),
               (273, 4, 8), (277, 3, 1), (278, 4, 100_000), (279, 4, 8)]  # fmt: skip
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    yield "tif", struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + packed + bytes(4)
    yield "ppm", b"P6 100000 100000 255\n" + bytes(99)
    yield "hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n" + bytes(99)


def pictures(folder: Path) -> list[Picture]:
    """Write the images, and return their descriptions."""
    made: list[Picture] = []

    def add(
        kind: str, suffix: str, data: bytes, expected: str, size: tuple[int, int] = (0, 0)
    ) -> None:
        name = f"{len(made):03d}_{kind.replace(' ', '_')}.{suffix}"
        (folder / name).write_bytes(data)
        made.append(Picture(name, kind, expected, size))

    plain = {suffix: encoded(picture(), format) for suffix, format in FORMATS.items()}
    # The large image follows a valid one. Otherwise it would also be loaded in place of unreadable
    # images before it.
    add("valid", "jpg", plain["jpg"], READABLE, SIZE)
    add("49 megapixels", "png", encoded(Image.new("L", (7000, 7000)), "PNG"), READABLE)
    for suffix, data in plain.items():
        add("valid", suffix, data, READABLE, SIZE)
        add("no bytes", suffix, b"", UNREADABLE)
        for tenth in range(1, 10):
            cut = data[: len(data) * tenth // 10]
            add("truncated", suffix, cut, UNREADABLE if suffix in ("jpg", "png") else EITHER)
        add("with appended bytes", suffix, data + b"more" * 99, READABLE, SIZE)
        add("of another size", suffix, data, UNREADABLE, (SIZE[0] + 1, SIZE[1]))
    dice = np.random.default_rng(1)
    for suffix, data in plain.items():
        for _ in range(6):
            flipped = bytearray(data)
            for place in dice.integers(0, min(len(data), 200), 4):
                flipped[place] ^= 1 << dice.integers(8)
            add("bits flipped", suffix, bytes(flipped), EITHER)
    suffixes = list(plain)
    for suffix, other in zip(suffixes, suffixes[1:] + suffixes[:1]):
        add("wrong suffix", suffix, plain[other], READABLE, SIZE)
    for kind, image, format in (
        ("CMYK", picture("CMYK"), "JPEG"),
        ("CMYK", picture("CMYK"), "TIFF"),
        ("gray", picture("L"), "JPEG"),
        ("gray", picture("L"), "PNG"),
        ("alpha", picture("RGBA"), "PNG"),
        ("alpha", picture("RGBA"), "WEBP"),
        ("gray with alpha", picture("LA"), "PNG"),
        ("palette", picture("P"), "PNG"),
        ("1 bit", picture("1"), "PNG"),
        ("1 bit", picture("1"), "BMP"),
        ("16 bit", picture("I;16"), "PNG"),
        ("16 bit", picture("I;16"), "TIFF"),
        ("YCbCr", picture("YCbCr"), "JPEG"),
        ("progressive", picture(), "JPEG"),
    ):
        options = {"progressive": True} if kind == "progressive" else {}
        add(kind, format.lower()[:4], encoded(image, format, **options), READABLE, SIZE)
    for orientation in range(1, 9):
        data = encoded(picture(), "JPEG", exif=exif(orientation))
        shown = SIZE[::-1] if orientation > 4 else SIZE
        add("rotated by EXIF", "jpg", data, READABLE, shown)
        add("rotated by EXIF, annotated unrotated", "jpg", data,
            UNREADABLE if orientation > 4 else READABLE, SIZE)  # fmt: skip
    for size in ((1, 1), (1, 20_000), (20_000, 1), (3, 5000), (1, 2)):
        add("of extreme sides", "png", encoded(picture(size=size), "PNG"), READABLE, size)
        add("of extreme sides", "jpg", encoded(picture(size=size), "JPEG"), READABLE, size)
    for suffix, data in bombs():
        add("bomb", suffix, data, UNREADABLE)
    add("bomb, whole", "png", encoded(Image.new("L", (8000, 8000)), "PNG"), UNREADABLE)
    frames = [picture("P"), picture("L").convert("P")]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    add("animated", "gif", animated, READABLE, SIZE)
    for data in (b"text", b"<html></html>", b"PK\x03\x04", bytes(1000), b"\xff\xd8\xff\xd9",
                 b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF", b"II*\0", b"P6\n", b"%PDF-1.4",
                 b"<svg xmlns='x'/>", b"#define a_width 99999"):  # fmt: skip
        add("not an image", "jpg", data, UNREADABLE)
    for name in ("folder.jpg", "pipe.jpg"):
        (os.mkdir if name[0] == "f" else os.mkfifo)(folder / name)
        made.append(Picture(name, name.removesuffix(".jpg"), UNREADABLE))
    return made


INVALID_IDS = [None, True, "7", "", 1.5, NAN, INF, -INF, [], {}, [7], 10**400, "x" * 1000]
INVALID_BOXES = [
    *(None, True, "1,2,3,4", 7, [], {}, [1, 2, 3], [1, 2, 3, 4, 5], [[1], 2, 3, 4]),
    *([NAN, 2, 3, 4], [1, NAN, 3, 4], [1, 2, NAN, 4], [1, 2, 3, NAN]),
    *([INF, 2, 3, 4], [1, -INF, 3, 4], [1, 2, INF, 4], [1, 2, 3, INF]),
    *(["1", 2, 3, 4], [None, 2, 3, 4], [10**400, 2, 3, 4], [1, 2, 1e300, 4]),
    *([1, 2, -3, 4], [1, 2, 3, -4], [True, 2, 3, 4]),
]
ANNOTATION_FIELDS = {
    "id": INVALID_IDS,
    "image_id": [*INVALID_IDS, 999_999, -1],
    "category_id": [*INVALID_IDS, 999, -1],
    "bbox": INVALID_BOXES,
    "area": ["big", NAN, INF, [], {}, True, 10**400, None],
    "iscrowd": ["no", 2, -1, [], {}, NAN],
    "ignore": ["no", 2, -1, [], {}, NAN],
}
INVALID_NAMES = [
    *(None, True, 7, "", [], {}, "/etc/passwd", "../images.json", "a/../../b.png", "..", "/"),
    *("C:\\x.png", "\\\\host\\x.png", "x\0.png", "x" * 5000, "\ud800.png", "http://x/y.png"),
    *("gone.png", "out.png", "circle.png", "nowhere.png", "up/images.json", "a/" * 5000),
]
INVALID_SIDES = ["40", NAN, INF, -1, 1.5, [1], {"a": 1}, 10**400]
IMAGE_FIELDS = {
    "id": INVALID_IDS,
    "file_name": INVALID_NAMES,
    "width": INVALID_SIDES,
    "height": INVALID_SIDES,
}


def entries(folder: Path) -> tuple[dict[str, Any], list[Entry]]:
    """Return a COCO file with one valid image and many faulty entries, and descriptions of them."""
    write_image(folder / "valid.png", SIZE)
    for name, target in (("out.png", "/etc/passwd"), ("circle.png", "circle.png"),
                         ("nowhere.png", "gone"), ("up", "..")):  # fmt: skip
        (folder / name).symlink_to(target)
    images: list[dict[str, Any]] = [{"id": 1, "file_name": "valid.png"}]
    annotations: list[dict[str, Any]] = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}
    ]
    named: list[Entry] = []
    for field, values in IMAGE_FIELDS.items():
        for value in values:
            id = 1000 + len(images)
            images.append({"id": id, "file_name": "valid.png"} | {field: value})
            name = f"image {len(images) - 1} in the list" if field == "id" else f"image {id}"
            named.append(Entry(f"image: {field}", name))
    for field, values in ANNOTATION_FIELDS.items():
        for value in values:
            id = 1000 + len(annotations)
            item = {"id": id, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}
            annotations.append(item | {field: value})
            position = f"annotation {len(annotations) - 1} in the list"
            named.append(
                Entry(f"annotation: {field}", position if field == "id" else f"annotation {id} ")
            )
    images.append(images[0])
    named.append(Entry("image: id twice", "image id 1 occurs twice"))
    annotations.append(annotations[0])
    named.append(Entry("annotation: id twice", "annotation id 1 occurs twice"))
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    return content, named


CATEGORIES = [{"id": 1, "name": "thing"}]


def load(folder: Path, made: list[Picture]) -> list[str]:
    """Load the images of an epoch and of an evaluation; return the lines that evaluation prints.

    Raises:
      AssertionError: if an image is neither loaded nor reported.
    """
    images = [
        {"id": i, "file_name": one.name, "width": one.size[0], "height": one.size[1]}
        for i, one in enumerate(made)
    ]
    annotations = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 20, 20]}
        for i in range(len(made))
    ]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "pictures.json").write_text(json.dumps(content))
    config = Config(input_size=(64, 64))
    config.data.val_images = config.data.train_images = str(folder / "images")
    config.data.val_annotations = config.data.train_annotations = str(folder / "pictures.json")
    config.data.max_unreadable, config.data.cache, config.data.batch_size = 1.0, "none", 1
    source = open_source(config, "train")
    lines: list[str] = []
    with mock.patch("nanodet_jax.data.unreadable.say", lines.append):
        batches = training_batches(source, config, slots=1)
        for batch in islice(batches, len(made)):
            assert np.isfinite(batch.images).all()
        del batches
        in_training, lines[:] = [*lines], []
        loaded = [i for batch in evaluation_batches(source, config) for i in batch.indices]
    assert sorted(errors(in_training)) == sorted(errors(lines)), "training and evaluation differ"
    assert len(loaded) + len(lines) == len(made), "some images are neither loaded nor reported"
    return lines


def errors(lines: list[str]) -> list[str]:
    """Return the error in each line, without its consequence, which differs in training."""
    return [line.split(";")[0] for line in lines]


def check_images(made: list[Picture], reported: list[str]) -> list[str]:
    """Describe images that were not reported as expected."""
    wrong = []
    for one in made:
        lines = [line for line in reported if f"/{one.name} " in line]
        if len(lines) > 1 or (one.expected != EITHER and bool(lines) != (one.expected != READABLE)):
            wrong.append(f"{one.name}: should be {one.expected}, but was reported as {lines}")
    return wrong


def check_entries(folder: Path, content: dict[str, Any], named: list[Entry]) -> list[str]:
    """Describe entries whose fault the doctor does not report, and a reader without an error."""
    (folder / "entries.json").write_text(json.dumps(content))
    config = Config()
    config.data.train_images = str(folder / "images")
    config.data.train_annotations = str(folder / "entries.json")
    found = scan(config, "train", progress=False)
    assert found.images == 1 and len(found.records[0].boxes) == 1, "the valid image must be read"
    lines = [str(fault) + " " for fault in found.faults]
    wrong = [
        f"not reported: {entry}" for entry in named if not any(has(line, entry) for line in lines)
    ]
    try:
        CocoSource(folder / "images", folder / "entries.json")
        wrong.append("the reader raised no error")
    except UserError:
        pass
    return wrong


def has(line: str, entry: Entry) -> bool:
    return entry.named in line.replace(":", " ").replace(";", " ")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main(folder: Path) -> int:
    """Run all cases; return 1 if any result is wrong, else 0."""
    images = folder / "images"
    images.mkdir(parents=True)
    made = pictures(images)
    content, named = entries(images)
    before = peak()
    reported = load(folder, made)
    labels, wrong_labels = hostile_labels.check(folder / "yolo")
    wrong = check_images(made, reported) + check_entries(folder, content, named) + wrong_labels
    used = peak() - before
    unreadable = Counter(
        one.kind for one in made if any(f"/{one.name} " in line for line in reported)
    )
    for kind, count in Counter(one.kind for one in made).items():
        print(f"{kind:38} {count:4}  reported as unreadable: {unreadable[kind]:4}")
    rejected = Counter(entry.kind for entry in named) + labels
    for kind, count in rejected.items():
        print(f"{kind:38} {count:4}  rejected by name: {count:4}")
    if used > MEMORY_BOUND:
        wrong.append(f"{used / 1e6:.0f} MB exceeds the limit of {MEMORY_BOUND / 1e6:.0f} MB")
    cases = len(made) + rejected.total()
    print(f"{cases} cases, {used / 1e6:.0f} MB at most; {len(wrong)} wrong")
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, help="folder for the files; default: a temporary one"
    )
    chosen = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(chosen or Path(temporary) / "hostile"))
