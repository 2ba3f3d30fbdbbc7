"""YOLO source: boxes against a plain loop and other sources, and errors by file and line."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nanodet_jax.config import Augment, Config
from nanodet_jax.data.faults import Fault, FaultKind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import count_slots, training_batches
from nanodet_jax.data.records import decode
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.data.sources.voc import VocSource, require_voc_class_names
from nanodet_jax.data.sources.yolo import YoloSource
from nanodet_jax.errors import UserError
from tests.builders import (
    YOLO_LINE,
    YOLO_YAML,
    write_image,
    write_yolo,
    write_yolo_image,
    yolo_faults,
)

BCCD = Path(__file__).parents[4] / "shared" / "data" / "bccd"


@pytest.fixture
def root(tmp_path):
    return write_yolo(tmp_path)


def expected(text: str, width: int, height: int) -> tuple[list[int], np.ndarray]:
    """Compute labels and boxes of lines inside their image, one by one."""
    labels, boxes = [], []
    for line in text.splitlines():
        label, *rest = [float(part) for part in line.split()]
        if len(rest) == 4:
            left, right = (rest[0] - rest[2] / 2) * width, (rest[0] + rest[2] / 2) * width
            top, bottom = (rest[1] - rest[3] / 2) * height, (rest[1] + rest[3] / 2) * height
        else:
            left, right = min(rest[0::2]) * width, max(rest[0::2]) * width
            top, bottom = min(rest[1::2]) * height, max(rest[1::2]) * height
        labels.append(int(label))
        boxes.append([left, top, right, bottom])
    return labels, np.array(boxes)


def test_yolo_records_have_the_boxes_and_polygons_of_the_lines(tmp_path):
    random = np.random.default_rng(0)
    texts = {}
    for index in range(6):
        lines = []
        for _ in range(index):
            cx, cy, w, h = random.uniform((0.3, 0.3, 0.05, 0.05), (0.7, 0.7, 0.5, 0.5))
            points = random.uniform(0.1, 0.9, 2 * random.integers(3, 9))
            numbers = (cx, cy, w, h) if random.random() < 0.5 else points
            lines.append(" ".join([str(random.integers(3)), *(f"{x:.6f}" for x in numbers)]))
        texts[f"images/train/{index}.png"] = "\n".join(lines)
    sizes = {
        name: (int(w), int(h)) for name, (w, h) in zip(texts, random.integers(90, 200, (6, 2)))
    }
    for name, text in texts.items():
        write_yolo_image(tmp_path, name, text, sizes[name])
    (tmp_path / "data.yaml").write_text(YOLO_YAML)
    source = YoloSource(tmp_path, "train")
    assert source.categories == ((1, "cat"), (2, "dog"), (3, "cow"))
    assert [(record.image_id, record.name) for record in source] == [*enumerate(texts, start=1)]
    for index, record in enumerate(source):
        width, height = sizes[record.name]
        labels, boxes = expected(texts[record.name], width, height)
        assert (record.width, record.height) == (width, height)
        assert source.image_size(index) == (height, width) == decode(record).shape[:2]
        assert source.num_boxes(index) == len(labels) == index
        np.testing.assert_array_equal(record.labels, labels)
        np.testing.assert_allclose(record.boxes, boxes.reshape(-1, 4), rtol=1e-6)
        assert record.boxes.dtype == np.float32 and not record.ignore.any()
        sides = boxes.reshape(-1, 4)[:, 2:] - boxes.reshape(-1, 4)[:, :2]
        np.testing.assert_allclose(record.areas, sides[:, 0] * sides[:, 1], rtol=1e-5)
    truth = source.ground_truth()
    assert [item["width"] for item in truth["images"]] == [w for w, _ in sizes.values()]
    assert len(truth["annotations"]) == 15


def coco_as_yolo(content: dict, images: Path, root: Path) -> None:
    """Write the images and boxes of a COCO file in YOLO format, with six digits."""
    categories = [item["id"] for item in content["categories"]]
    for info in content["images"]:
        lines = []
        for item in content["annotations"]:
            if item["image_id"] == info["id"]:
                x, y, w, h = item["bbox"]
                W, H = info["width"], info["height"]
                fractions = (x + w / 2) / W, (y + h / 2) / H, w / W, h / H
                label = categories.index(item["category_id"])
                lines.append(" ".join([str(label), *(f"{value:.6f}" for value in fractions)]))
        for folder, suffix in (("images", ""), ("labels", ".txt")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            name = Path(info["file_name"])
            if suffix:
                (root / folder / name.with_suffix(suffix)).write_text("\n".join(lines) + "\n")
            else:
                shutil.copy(images / name, root / folder / name)
    listed = json.dumps([item["name"] for item in content["categories"]])
    (root / "data.yaml").write_text(f"train: images\nval: images\nnames: {listed}\n")


def assert_same_records(one, other) -> None:
    """Compare records, up to rounding to six digits of the side of the image."""
    assert len(one) == len(other) > 0
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a.labels, b.labels)
        tolerance = 1.1e-6 * max(b.height, b.width)
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=2e-7, atol=tolerance)
        assert (a.height, a.width) == (b.height, b.width)
        assert decode(a).shape == (b.height, b.width, 3)


def test_yolo_and_coco_sources_of_the_same_boxes_agree(tmp_path):
    """Images with and without EXIF rotation; boxes on the border and one pixel wide."""
    random = np.random.default_rng(1)
    images, annotations = [], []
    for id, orientation in enumerate((1, 6, 8, 3, 5), start=1):
        width, height = random.integers(60, 900, 2).tolist()
        name = f"{id:03d}.jpg"
        write_image(tmp_path / "images" / name, (width, height), orientation)
        if orientation > 4:
            width, height = height, width
        images.append({"id": id, "file_name": name, "width": width, "height": height})
        boxes = [[0, 0, width, height], [width - 1, 3, 1, 20], [5, 6, 1, 1]]
        for _ in range(6):
            x, y = random.uniform(0, (width - 2, height - 2))
            boxes.append([x, y, random.uniform(1.1, width - x), random.uniform(1.1, height - y)])
        for box in boxes:
            annotations.append({"id": len(annotations) + 1, "image_id": id, "bbox": box,
                                "category_id": [3, 5, 9][random.integers(3)]})  # fmt: skip
    categories = [{"id": id, "name": name} for id, name in ((3, "cat"), (5, "dog"), (9, "cow"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    coco_as_yolo(content, tmp_path / "images", tmp_path / "yolo")
    faults: list[Fault] = []
    source = YoloSource(tmp_path / "yolo", "train", on_fault=faults.append)
    assert_same_records(source, CocoSource(tmp_path / "images", tmp_path / "coco.json"))
    assert faults == []


@pytest.mark.skipif(not BCCD.is_dir(), reason="shared/data/bccd is absent")
def test_bccd_as_yolo_has_the_boxes_of_voc(tmp_path):
    val = VocSource(BCCD, "val", require_voc_class_names(BCCD))
    truth = val.ground_truth()
    coco_as_yolo(truth, BCCD / "val" / "images", tmp_path)
    source = YoloSource(tmp_path, "val")
    assert_same_records(source, val)
    found = source.ground_truth()
    assert len(found["annotations"]) == len(truth["annotations"]) == 945
    for one, other in zip(found["annotations"], truth["annotations"]):
        assert {**one, "bbox": 0, "area": 0} == {**other, "bbox": 0, "area": 0}
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=2e-3)


def test_yolo_batch_has_the_boxes_in_pixels_of_the_input(root):
    config = Config(input_size=(64, 64), augment=Augment())
    config.data.format, config.data.root, config.data.batch_size = "yolo", str(root), 1
    source = open_source(config, "train")
    slots, _ = count_slots(source, 0)
    batch = next(training_batches(source, config, slots))
    assert batch.images.shape == (1, 64, 64, 3)
    np.testing.assert_allclose(batch.ground_truth.boxes, [[[24, 16, 40, 48]]], rtol=1e-6)
    assert batch.ground_truth.labels.tolist() == [[1]]


LABELS = {
    "blank lines, spaces and tabs": ("\n 1\t.5  .5 .25 .5 \r\n\r\n", [1], [[37.5, 20, 62.5, 60]]),
    "byte order mark": ("\ufeff" + YOLO_LINE, [1], [[37.5, 20, 62.5, 60]]),
    "a class as a float": ("2.0 .5 .5 .25 .5", [2], [[37.5, 20, 62.5, 60]]),
    "powers of ten": ("1e0 5e-1 .5 2.5E-1 .5", [1], [[37.5, 20, 62.5, 60]]),
    "nothing": ("", [], []),
    "twice": (YOLO_LINE * 2, [1, 1], [[37.5, 20, 62.5, 60]] * 2),
    "a triangle": ("0 .1 .2 .3 .1 .2 .5", [0], [[10, 8, 30, 40]]),
    "a turned box": ("0 .1 .2 .3 .1 .4 .3 .2 .4", [0], [[10, 8, 40, 32]]),
    "rounded over the border": ("0 .05 .5 .1001 .5", [0], [[0, 20, 10.01, 60]]),
    # As in the original, the corner moves in, the width stays, and the right edge is not clipped.
    "over the left": ("0 .04 .5 .1 .5", [0], [[0, 20, 10, 60]]),
    "over the right": ("0 1 .5 .1 .5", [0], [[95, 20, 105, 60]]),
    "wider than the image": ("0 .5 .5 1.01 .5", [0], [[0, 20, 100, 60]]),
    "a pixel": ("0 .5 .5 .01 .0125", [0], [[49.5, 39.5, 50.5, 40.5]]),
    "below a pixel": ("0 .5 .5 .0098 .5", [], []),
    "no area": ("0 .5 .5 0 .5", [], []),
}


@pytest.mark.parametrize("case", LABELS)
def test_yolo_line_gives_its_box(case, root):
    text, labels, boxes = LABELS[case]
    (root / "labels/train/a.txt").write_text(text)
    record = YoloSource(root, "train")[0]
    assert record.labels.tolist() == labels
    np.testing.assert_allclose(record.boxes, np.reshape(boxes, (-1, 4)), rtol=1e-5)
    faults = yolo_faults(root)
    assert all(fault.tolerated and "a.txt: " in str(fault) for fault in faults)
    kinds = {"over the left": FaultKind.OUTSIDE, "wider than the image": FaultKind.OUTSIDE,
             "below a pixel": FaultKind.EMPTY, "no area": FaultKind.EMPTY}  # fmt: skip
    assert [fault.kind for fault in faults] == ([kinds[case]] if case in kinds else [])


UTF_16 = YOLO_LINE.encode("utf-16").decode("latin-1")
FAULTS = {
    "text": ("1 .5 .5 wide .5", FaultKind.NUMBERS, "is not a line of numbers"),
    "json": ('{"shapes": []}', FaultKind.NUMBERS, "is not a line of numbers"),
    "utf-16": (
        YOLO_LINE.encode("utf-16").decode("latin-1"),
        FaultKind.NUMBERS,
        "is not a line of numbers",
    ),
    "nan": ("1 .5 nan .25 .5", FaultKind.NUMBERS, "a number that is not finite"),
    "infinite": ("1 .5 .5 1e999 .5", FaultKind.NUMBERS, "a number that is not finite"),
    "class nan": ("nan .5 .5 .25 .5", FaultKind.NUMBERS, "a number that is not finite"),
    "class alone": ("1", FaultKind.NUMBERS, "has 0 numbers after the class; a box has 4"),
    "four": ("1 .5 .5 .25", FaultKind.NUMBERS, "has 3 numbers"),
    "with a score": ("1 .5 .5 .25 .5 .9", FaultKind.NUMBERS, "has 5 numbers"),
    "three points and a half": (
        "1 .1 .1 .2 .2 .3 .3 .4",
        FaultKind.NUMBERS,
        "has 7 numbers",
    ),
    "class too high": (
        "3 .5 .5 .25 .5",
        FaultKind.CLASSES,
        r"unknown class 3; `names` in .* 0 to 2",
    ),
    "class too low": ("-1 .5 .5 .25 .5", FaultKind.CLASSES, "unknown class -1"),
    "half a class": ("1.5 .5 .5 .25 .5", FaultKind.CLASSES, "unknown class 1.5"),
    "negative": ("1 .5 .5 -.005 .5", FaultKind.INVERTED, "negative width or height"),
    "pixels": (
        "1 50 40 25 40",
        FaultKind.NOT_FRACTIONS,
        "use fractions of width and height",
    ),
    "left of the image": ("1 -.02 .5 .25 .5", FaultKind.OUTSIDE, "outside 0 to 1"),
    "polygon in pixels": ("1 5 4 25 40 3 3", FaultKind.NOT_FRACTIONS, "outside 0 to 1"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_yolo_fault_is_an_error_that_names_the_line(case, root):
    text, kind, message = FAULTS[case]
    (root / "labels/train/a.txt").write_bytes(f"{YOLO_LINE}\n{text}\n{YOLO_LINE}".encode("latin-1"))
    with pytest.raises(Fault, match=rf"a\.txt: line 3: .*{message}") as error:
        YoloSource(root, "train")
    assert error.value.kind is kind and "\n" not in str(error.value)
    faults = yolo_faults(root)
    assert [(fault.kind, fault.tolerated) for fault in faults][:1] == [(kind, False)]
    assert YoloSource(root, "train", on_fault=lambda _: None)[0].labels.tolist() == [1, 1]


def test_yolo_label_file_that_is_too_long_or_a_pipe_is_an_error(root):
    labels = root / "labels/train/a.txt"
    labels.write_bytes(b"0 " * 3_000_000)
    with pytest.raises(
        Fault, match=r"a\.txt: cannot be read: has 6,000,000 bytes; the limit for the b"
    ):
        YoloSource(root, "train")
    labels.unlink()
    os.mkfifo(labels)
    with pytest.raises(Fault, match=r"a\.txt: cannot be read: is not a regular file"):
        YoloSource(root, "train")


def test_yolo_image_without_label_file_has_no_boxes(root):
    write_yolo_image(root, "images/train/b.png", None)
    (root / "images/train/c.png").write_text("not an image")
    (root / "labels/train/c.txt").write_text(YOLO_LINE)
    source = YoloSource(root, "train")
    assert [source.num_boxes(i) for i in range(3)] == [1, 0, 1]
    assert [len(record.boxes) for record in source] == [1, 0, 0]
    assert source.image_size(2) == (0, 0)
    with pytest.raises(UserError, match=r"c\.png \(image 3\): not an image that OpenCV can read"):
        decode(source[2])
    for labels in (root / "labels/train").iterdir():
        labels.unlink()
    with pytest.raises(UserError, match=r"none of the 3 images has a label.*labels/train/a\.txt"):
        YoloSource(root, "train")
