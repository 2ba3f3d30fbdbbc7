"""Readers of annotations and images with any input: valid records, or a UserError of one line."""

import io
import json
import os

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from nanodet_jax.data.records import decode, make_record
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.data.sources.coco_masks import box_and_area
from nanodet_jax.data.sources.voc import VocSource, require_voc_class_names
from nanodet_jax.data.sources.yolo import YoloSource
from tests.builders import exif, noise, write_image
from tests.fuzz.inputs import JSON, SCALARS, accepts, fuzz


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of images, some of them behind links, for annotations of the tests."""
    folder = tmp_path_factory.mktemp("fuzz")
    images = folder / "images"
    write_image(images / "a.png", (20, 10))
    write_image(images / "deep" / "a.png", (20, 10))
    (images / "loop").symlink_to("loop")
    return folder


def check_records(source):
    """Check the invariants of `Record`, and that the ground truth lists all records."""
    truth = source.ground_truth()
    json.dumps(truth)
    assert len(truth["images"]) >= len(source)
    for index in range(len(source)):
        record = source[index]
        n = len(record.boxes)
        assert (record.boxes.shape, record.boxes.dtype) == ((n, 4), np.float32)
        assert np.isfinite(record.boxes).all()
        assert (record.boxes[:, 2:] >= record.boxes[:, :2]).all()
        assert len(record.labels) == len(record.ignore) == len(record.areas) == n
        assert ((record.labels >= 0) & (record.labels < len(source.categories))).all()
        assert record.width >= 0 and record.height >= 0
        assert source.num_boxes(index) >= n  # YOLO counts without reading images


@st.composite
def segmentations(draw):
    """Polygons or a mask, mostly of the image's size, in which values may be odd."""
    if draw(st.booleans()):
        number = st.integers(0, 20) | st.floats(0, 20) | SCALARS
        return draw(st.lists(st.lists(number, min_size=6, max_size=8), max_size=2))
    size = [draw(st.sampled_from([10, 1, 0, 10**9])), draw(st.sampled_from([20, 2]))]
    text = st.text(st.characters(min_codepoint=48, max_codepoint=112), max_size=12)
    runs = st.lists(st.integers(-1, 120), max_size=4) | st.just([30, 60, 110])
    return {"size": size, "counts": draw(text | runs | JSON)}


@st.composite
def coco_files(draw):
    """A COCO file in which few or many values are odd or missing."""
    odd = st.sampled_from([False] * draw(st.sampled_from([4, 40, 400])) + [True])

    def item(**sound):
        kept = {key: value for key, value in sound.items() if not draw(odd)}
        return {key: draw(JSON) if draw(odd) else value for key, value in kept.items()}

    names = st.sampled_from(["a.png", "deep/a.png"])
    side = st.integers(0, 30) | st.floats(0, 30)
    content = {
        "images": [
            item(id=i, file_name=draw(names), width=20, height=10)
            for i in range(draw(st.integers(1, 3)))
        ],
        "annotations": [
            item(
                id=i,
                image_id=0,
                category_id=draw(st.sampled_from([3, 5])),
                bbox=[draw(SCALARS) if draw(odd) else draw(side) for _ in range(4)],
                segmentation=draw(segmentations()),
                iscrowd=draw(st.integers(0, 1)),
            )
            for i in range(draw(st.integers(0, 4)))
        ],
        "categories": [item(id=3, name="cat"), item(id=5, name="dog")],
    }
    return item(**content)


def coco(folder, text):
    file = folder / "labels.json"
    file.write_bytes(text)
    return CocoSource(folder / "images", file)


@fuzz
@given(segmentations() | JSON)
def test_box_and_area_are_valid_or_an_error(segmentation):
    try:
        (x, y, width, height), area = box_and_area(segmentation)
    except ValueError as error:
        assert str(error)
        return
    assert np.isfinite([x, y, width, height, area]).all() and min(width, height, area) >= 0
    if isinstance(segmentation, dict):
        rows, columns = segmentation["size"]
        assert 0 <= x < x + width <= columns and 0 <= y < y + height <= rows
        assert 0 < area <= width * height


@fuzz
@given(coco_files() | JSON)
@example({"images": [{"id": 7, "file_name": "a.png"}], "annotations": [],
          "categories": [{"id": 3, "name": "\ud800"}]})  # fmt: skip
@example({"images": [{"id": 7, "file_name": "\ud800"}], "annotations": [],
          "categories": [{"id": 3, "name": "cat"}]})  # fmt: skip
def test_coco_source_returns_valid_records_or_an_error(folder, content):
    source = accepts(coco, folder, json.dumps(content).encode())
    if source is not None:
        check_records(source)


@fuzz
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="ignore")))
@example(b'{"images": ' + b"9" * 5000 + b"}")  # more digits than int() accepts
@example(b"[" * 100_000)
@example(b"\xef\xbb\xbf[]")
def test_coco_source_of_random_bytes_is_an_error(folder, content):
    assert accepts(coco, folder, content) is None


NUMBER = st.sampled_from(["", "1", "5", "12", "19", "-3", "nan", "inf", "1e400", "0x1", "_1", "1_0",
                          "\u0661", "five"])  # fmt: skip


@st.composite
def xmls(draw):
    """An xml file whose parts are each valid, odd or missing."""

    def sides(names):
        drawn = {name: draw(NUMBER) for name in names if draw(st.integers(0, 9))}
        return "".join(f"<{name}>{value}</{name}>" for name, value in drawn.items())

    objects = [
        f"<object><name>{draw(st.sampled_from(['cat', 'dog', '', '&amp;', 'é', '&#7;']))}</name>"
        f"<bndbox>{sides(('xmin', 'ymin', 'xmax', 'ymax'))}</bndbox></object>"
        for _ in range(draw(st.integers(0, 3)))
    ]
    size = f"<size>{sides(('width', 'height'))}</size>" if draw(st.booleans()) else ""
    name = draw(st.sampled_from(["a.png", "../a.png", "", "deep", "loop", "x" * 300]))
    text = f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"
    start, end = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return text[start * (start > 2) : len(text) - end * (end > 2)].encode()


def voc(folder, text):
    split = folder / "train"
    (split / "annotations").mkdir(parents=True, exist_ok=True)
    if not (split / "images").exists():
        (split / "images").symlink_to(folder / "images")
    (split / "annotations" / "a.xml").write_bytes(text)
    accepts(require_voc_class_names, folder)
    return VocSource(folder, "train", ("cat", "dog"))


@fuzz
@given(xmls() | st.binary(max_size=80))
@example(b'<?xml version="1.0" encoding="utf-7"?><annotation/>')
@example(b'<?xml version="1.0" encoding="idna"?><annotation/>')
@example(b"<a>" * 100_000)
def test_voc_source_returns_valid_records_or_an_error(folder, content):
    source = accepts(voc, folder, content)
    if source is not None:
        check_records(source)


def yolo(folder, text, labels):
    (folder / "labels").mkdir(exist_ok=True)
    if not (folder / "outside").exists():
        (folder / "outside").symlink_to("/")
    (folder / "list.txt").write_text("images/a.png\n./images/deep/a.png\n")
    (folder / "labels" / "a.txt").write_bytes(labels)
    (folder / "data.yaml").write_bytes(text)
    return YoloSource(folder, "train")


def check_yolo(folder, text, labels):
    source = accepts(yolo, folder, text, labels)
    if source is not None:
        check_records(source)
        for index in range(len(source)):
            assert os.path.realpath(source[index].image).startswith(f"{folder.resolve()}/images/")


FRACTION = st.sampled_from(
    ["0", "1", "2", ".5", ".25", "1e-1", "-.005", "1.004", "1.5", "-0", "0.001", "nan", "inf",
     "1e400", "0x1", "1_0", "\u0661", "five", "\0"]
)  # fmt: skip
LABELS = st.lists(
    st.lists(FRACTION, max_size=9).map(" ".join)
    | st.lists(st.floats(0, 1).map(str), min_size=4, max_size=4).map(lambda s: f"1 {' '.join(s)}"),
    max_size=4,
).map(lambda lines: "\n".join(lines).encode())


@fuzz
@given(LABELS | st.binary(max_size=80))
@example(b"\xef\xbb\xbf0 .5 .5 .5 .5")
@example(b"0 " * 100_000)
def test_yolo_source_of_any_labels_returns_valid_records_or_an_error(folder, labels):
    check_yolo(folder, b"{train: images, names: [cat, dog]}", labels)


@st.composite
def data_yamls(draw):
    """A data.yaml in which few or many values are odd or missing."""
    odd = st.sampled_from([False] * draw(st.sampled_from([2, 9, 99])) + [True])
    paths = st.sampled_from(["images", "../images", ".", "..", "", "list.txt", "images/deep", "/",
                             "outside/etc", "images/loop", "//", "./", "labels", "../../images",
                             "data.yaml", "images/a.png", "~", "C:/images"])  # fmt: skip
    sound = {
        "path": draw(paths),
        "train": draw(paths | st.lists(paths, min_size=1, max_size=3)),
        "names": draw(st.sampled_from([["cat", "dog"], {0: "cat", 1: "dog"}])),
        "nc": 2,
    }
    content = {key: draw(JSON) if draw(odd) else value for key, value in sound.items()}
    for key in ("path", "nc", *(["train", "names"] if draw(odd) else [])):
        if draw(st.booleans()):
            del content[key]
    return repr(content).encode()  # valid yaml; json would turn the keys of names into texts


TOKENS = st.sampled_from(
    ["train: images\n", "names: [cat, dog]\n", "names:\n", " 0: cat\n", "- cat\n", "nc: 2\n",
     "&a ", "*a ", "<<: ", "{", "}", "[", "]", ": ", "? ", "! ", "!!int ", "!!bool x", "|\n", "=",
     "!!timestamp x", "!!binary x", "!!float x", "!!python/name:os.system ", "!!set ", "!!omap ",
     "!!pairs ", "~", "%YAML 9.9\n", "---\n", "...\n", "\t", "# ", "'", '"', "\\x", "2001-01-99",
     "1:99", "0o9", "é"]
)  # fmt: skip


@fuzz
@given(
    data_yamls()
    | st.lists(TOKENS, max_size=8).map("".join).map(str.encode)
    | st.binary(max_size=40)
)
@example(b"[" * 100_000)
@example(b"train: " + b"9" * 5000)
@example(b"!!timestamp x")
@example(b"!!int ''")
@example(b"a: &a [*a]\n")
def test_yolo_source_of_any_yaml_returns_valid_records_or_an_error(folder, text):
    check_yolo(folder, text, b"1 .5 .5 .5 .5")


def encoded(format, **options):
    buffer = io.BytesIO()
    Image.fromarray(noise(10, 20)).save(buffer, format, **options)
    return buffer.getvalue()


IMAGES = [encoded(name) for name in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")]
IMAGES += [encoded("JPEG", exif=exif(6)), encoded("PNG", exif=exif(6))]


@st.composite
def changed(draw, originals):
    """The bytes of a file with some changed, and possibly truncated."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, min(len(data), 300) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


@fuzz
@given(changed(IMAGES) | st.binary(max_size=40))
def test_decode_returns_pixels_or_an_error(content):
    record = make_record(1, "a", content, (0, 0), [], [], [], [])
    pixels = accepts(decode, record, 1.0)
    if pixels is not None:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert pixels.size <= 3e6
