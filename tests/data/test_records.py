"""Records: decoding and its errors, ground truth in COCO format, and opening of sources."""

import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nanodet_jax.config import Config
from nanodet_jax.data.image_files import shown_size, stored_size
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.records import Category, Record, coco_ground_truth, decode, make_record
from nanodet_jax.errors import UserError

PIXELS = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (80, 60))


def encode(suffix: str) -> bytes:
    return cv2.imencode(suffix, PIXELS)[1].tobytes()


def record(image: Path | bytes | np.ndarray, size: tuple[int, int] = (60, 80)) -> Record:
    name = image.name if isinstance(image, Path) else "bytes.jpg"
    return make_record(7, name, image, size, [], [], [], [])


def with_exif(jpeg: bytes, orientation: int, thumbnail: bytes = b"") -> bytes:
    """Insert an APP1 segment with an orientation and a thumbnail into a JPEG file."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    body = b"Exif\0\0" + tiff + thumbnail
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_decode_of_file_bytes_and_array_gives_the_same_pixels(suffix, tmp_path):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(encode(suffix))
    for image in (file, encode(suffix), PIXELS):
        np.testing.assert_array_equal(decode(record(image)), PIXELS)


def test_decode_of_gray_alpha_and_16_bit_gives_three_channels_of_uint8():
    alpha = np.dstack([PIXELS, PIXELS[..., 0]])
    for pixels in (PIXELS[..., 0], alpha, PIXELS.astype(np.uint16) * 257):
        found = decode(record(cv2.imencode(".png", pixels)[1].tobytes()))
        assert (found.shape, found.dtype) == ((60, 80, 3), np.uint8)


def test_decode_checks_the_size_only_where_it_is_annotated():
    assert decode(record(encode(".jpg"), (0, 0))).shape == (60, 80, 3)
    with pytest.raises(UserError, match=r"bytes\.jpg \(image 7\): is 80x60 but .* as 81x60"):
        decode(record(encode(".jpg"), (60, 81)))


def test_decode_applies_the_exif_orientation_and_names_it_if_sides_are_swapped():
    rotated = with_exif(encode(".jpg"), orientation=6)  # a quarter turn clockwise
    upright = decode(record(encode(".jpg")))
    np.testing.assert_array_equal(decode(record(rotated, (80, 60))), np.rot90(upright, -1))
    with pytest.raises(UserError, match="EXIF orientation swaps width and height"):
        decode(record(rotated, (60, 80)))
    with pytest.raises(UserError, match="60x80 but annotated as 99x60: correct the annotation"):
        decode(record(rotated, (60, 99)))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("fraction", [0.3, 0.9, 0.999])
def test_decode_of_a_truncated_image_is_an_error(suffix, fraction, tmp_path):
    file = tmp_path / f"cut{suffix}"
    data = encode(suffix)
    file.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match=rf"cut\{suffix} \(image 7\): image is truncated"):
        decode(record(file))


def test_decode_ignores_the_end_marker_of_a_thumbnail():
    whole = with_exif(encode(".jpg"), orientation=1, thumbnail=encode(".jpg"))
    assert decode(record(whole)).shape == (60, 80, 3)
    with pytest.raises(UserError, match="truncated"):
        decode(record(whole[:-200]))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_decode_accepts_bytes_after_the_end(suffix):
    assert decode(record(encode(suffix) + b"appended")).shape == (60, 80, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff"])
def test_decode_of_bytes_that_are_not_an_image_is_an_error(content, tmp_path):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.jpg \(image 7\): (not an image|image is truncated)"):
        decode(record(tmp_path / "x.jpg"))


def test_decode_of_a_missing_file_or_a_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg \(image 7\): file is missing"):
        decode(record(tmp_path / "gone.jpg"))
    with pytest.raises(UserError, match="cannot be read"):
        decode(record(tmp_path))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".gif"])
def test_decode_of_too_many_megapixels_is_an_error_before_pixels_are_decoded(suffix, monkeypatch):
    data = encode(suffix)
    assert decode(record(data), max_megapixels=0.0048).shape == (60, 80, 3)
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(UserError, match=r"\(image 7\): is 80x60, 0\.0 megapixels; .* of 0\.0047"):
        decode(record(data), max_megapixels=0.0047)


def test_decode_of_a_file_longer_than_any_image_is_an_error(tmp_path):
    file = tmp_path / "sparse.jpg"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(UserError, match=r"cannot be read: has .* bytes; the limit for an image"):
        decode(record(file))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_shown_size_is_the_size_of_the_decoded_pixels(orientation):
    data = with_exif(encode(".jpg"), orientation)
    assert stored_size(data) == (60, 80)
    assert shown_size(data) == decode(record(data, (0, 0))).shape[:2]


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/'
    b'22-rdf-syntax-ns#"><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "XMP in a JPEG", "GIF", "BMP"])
def test_shown_size_of_every_format_is_read_from_the_header(format, orientation, tmp_path):
    """The file may end after the header."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"XMP in a JPEG": {"xmp": XMP}, "TIFF": {"tiffinfo": exif}}.get(format)
    image = Image.fromarray(PIXELS)
    buffer = io.BytesIO()
    image.save(buffer, format.split()[-1], **(options or {"exif": exif}))
    data = buffer.getvalue()
    (tmp_path / "whole").write_bytes(data)
    shown = decode(record(data, (0, 0))).shape[:2]
    rotated = orientation > 4 and format in ("JPEG", "PNG", "WEBP", "TIFF")
    assert shown == ((80, 60) if rotated else (60, 80))
    assert shown_size(data) == shown_size(tmp_path / "whole") == shown
    if format in ("JPEG", "PNG", "BMP"):
        (tmp_path / "cut").write_bytes(data[: len(data) // 2])
        assert shown_size(tmp_path / "cut") == shown


def test_shown_size_of_a_file_that_is_not_an_image_is_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("text")
    for name in ("pipe.png", "text.png", "gone.png", "."):
        assert shown_size(tmp_path / name) is None


def test_coco_ground_truth_lists_images_boxes_and_categories():
    categories = (Category(3, "cat"), Category(9, "dog"))
    records = [
        make_record(5, "a.jpg", PIXELS, (60, 80), [[1, 2, 4, 8]], [1], [False], [18]),
        make_record(6, "b.jpg", PIXELS, (60, 80), [], [], [], []),
        make_record(7, "c.jpg", PIXELS, (60, 80), [[0, 0, 2, 2]], [0], [True], [3]),
    ]
    truth = coco_ground_truth(records, categories)
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]
    assert truth["images"][1] == {"id": 6, "file_name": "b.jpg", "width": 80, "height": 60}
    first = {"id": 1, "image_id": 5, "category_id": 9, "bbox": [1, 2, 3, 6], "area": 18}
    second = {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 2, 2], "area": 3}
    assert truth["annotations"] == [first | {"iscrowd": 0}, second | {"iscrowd": 1}]


def test_open_source_of_shapes_has_the_sizes_of_the_config():
    config = Config(input_size=(64, 96))
    config.data.format, config.data.train_size, config.data.val_size = "shapes", 5, 3
    train, val = open_source(config, "train"), open_source(config, "val")
    assert (len(train), len(val)) == (5, 3)
    assert decode(train[0]).shape == (96, 96, 3)
    assert not np.array_equal(decode(train[0]), decode(val[0]))


@pytest.mark.parametrize(
    ("format", "split", "field"),
    [
        ("coco", "train", "train_images"),
        ("coco", "val", "val_images"),
        ("voc", "train", "root"),
        ("yolo", "train", "root"),
        ("tfds", "val", "root"),
    ],
)
def test_open_source_without_a_path_is_an_error_that_names_the_field(format, split, field):
    config = Config()
    config.data.format = format
    with pytest.raises(UserError, match=rf"config\.data\.{field}: is empty; .*--config\.data\."):
        open_source(config, split)


def test_open_source_of_an_unknown_format_is_an_error():
    config = Config()
    config.data.format = "kitti"
    with pytest.raises(UserError, match=r"config\.data\.format='kitti'"):
        open_source(config, "train")
