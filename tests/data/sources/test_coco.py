"""COCO source: records, skipped boxes, and errors by name."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanodet_jax.config import Config
from nanodet_jax.data import json_text
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.records import decode
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.errors import UserError
from tests.builders import write_coco

COCO_MINI = Path(__file__).parents[4] / "shared" / "data" / "coco_mini"

CONTENT: dict[str, Any] = {
    "info": {"year": 2024},
    "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    "images": [
        {"id": 42, "file_name": "b.png", "width": 40, "height": 30},
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 42, "category_id": 18, "bbox": [1, 2, 10, 20], "area": 150.5},
        {
            "id": 2,
            "image_id": 42,
            "category_id": 3,
            "bbox": [0.5, 0, 5, 4],
            "area": 9,
            "iscrowd": 1,
        },
        {"id": 3, "image_id": 42, "category_id": 3, "bbox": [3, 3, 6, 6], "ignore": 1},
        {"id": 4, "image_id": 42, "category_id": 3, "bbox": [3, 3, 0.9, 6]},
        {"id": 5, "image_id": 42, "category_id": 3, "bbox": [3, 3, 6, 6], "area": 0},
    ],
}


@pytest.fixture
def content() -> dict[str, Any]:
    return copy.deepcopy(CONTENT)


def write(folder: Path, content: Any) -> tuple[Path, Path]:
    """Write two gray images and the annotation file; return the folder of images and the file."""
    pixels = np.full((30, 40, 3), 9, np.uint8)
    return write_coco(folder, content, {"a.png": pixels, "b.png": pixels})


def test_coco_records_have_labels_boxes_and_flags_of_the_file(content, tmp_path):
    source = CocoSource(*write(tmp_path, content))
    assert source.categories == ((3, "car"), (18, "dog"))
    assert [record.image_id for record in source] == [7, 42]
    empty, record = source
    assert empty.boxes.shape == (0, 4)
    assert [source.num_boxes(i) for i in range(2)] == [0, 3]
    assert source.image_size(1) == (30, 40)
    np.testing.assert_array_equal(source.annotation_ids(1), [1, 2, 3])
    np.testing.assert_array_equal(record.boxes, [[1, 2, 11, 22], [0.5, 0, 5.5, 4], [3, 3, 9, 9]])
    np.testing.assert_array_equal(record.labels, [1, 0, 0])
    np.testing.assert_array_equal(record.ignore, [False, True, True])
    np.testing.assert_array_equal(record.areas, [150.5, 9, 36])
    dtypes = [getattr(record, name).dtype for name in ("boxes", "labels", "ignore", "areas")]
    assert dtypes == [np.float32, np.int32, bool, np.float32]
    assert (record.name, record.height, record.width) == ("b.png", 30, 40)
    assert decode(record)[0, 0].tolist() == [9, 9, 9]


def test_coco_ground_truth_is_the_file_with_defaults_filled_in(content, tmp_path):
    truth = CocoSource(*write(tmp_path, content)).ground_truth()
    for key in ("info", "categories", "images"):
        assert truth[key] == content[key]
    assert [item["area"] for item in truth["annotations"]] == [150.5, 9, 36, 5.4, 0]
    assert [item["iscrowd"] for item in truth["annotations"]] == [0, 1, 0, 0, 0]


def test_coco_image_without_size_in_a_subfolder_is_read(content, tmp_path):
    images, file = write(tmp_path, content)
    (images / "deep").mkdir()
    (images / "a.png").rename(images / "deep" / "a.png")
    content["images"][1] = {"id": 7, "file_name": "deep/a.png"}
    file.write_text(json.dumps(content))
    record = CocoSource(images, file)[0]
    assert (record.height, record.width) == (0, 0)
    assert decode(record).shape == (30, 40, 3)


def set_annotation(**fields: Any):
    return lambda content: content["annotations"][0].update(fields)


FAULTS = {
    "unknown category": (
        set_annotation(category_id=99),
        r"annotation 1 \(image 42\): unknown category id 99",
    ),
    "unknown image": (set_annotation(image_id=8), r"annotation 1 \(image 8\): unknown image id"),
    "image id of a list": (set_annotation(image_id=[8]), r"annotation 1 .*unknown image id"),
    "nan": (set_annotation(bbox=[1, 2, float("nan"), 3]), r"annotation 1 .*bbox=\[1, 2, nan, 3\]"),
    "inf": (set_annotation(bbox=[float("-inf"), 2, 3, 3]), r"annotation 1 .*bbox=\[-inf"),
    "huge": (set_annotation(bbox=[10**400, 2, 3, 3]), r"annotation 1 .*four finite numbers"),
    "three numbers": (set_annotation(bbox=[1, 2, 3]), r"annotation 1 .*four finite numbers"),
    "text": (set_annotation(bbox=[1, 2, "3", 4]), r"annotation 1 .*bbox=\[1, 2, '3', 4\]"),
    "no box": (set_annotation(bbox=None), r"annotation 1 .*bbox=None"),
    "negative": (set_annotation(bbox=[9, 2, -3, 4]), r"annotation 1 .*negative width or height"),
    "area": (set_annotation(area="big"), r"annotation 1 .*area='big' is not a finite number"),
    "crowd": (set_annotation(iscrowd="no"), r"annotation 1 .*iscrowd='no' must be 0 or 1"),
    "annotation twice": (set_annotation(id=2), "annotation id 2 occurs twice"),
    "annotation without id": (set_annotation(id=None), "annotation 0 in the list needs an integer"),
    "image twice": (lambda c: c["images"][0].update(id=7), "image id 7 occurs twice"),
    "image without name": (lambda c: c["images"][0].pop("file_name"), "image 42 needs a 'file_"),
    "image size": (lambda c: c["images"][0].update(width=-1), "image 42: width=-1 is not a whole"),
    "no images": (lambda c: c["images"].clear(), "lists no images"),
    "category twice": (lambda c: c["categories"][0].update(id=3), "category id 3 occurs twice"),
    "category without name": (lambda c: c["categories"][0].pop("name"), "category 0 in the list"),
    "no categories": (lambda c: c["categories"].clear(), "lists no categories"),
    "no annotations": (
        lambda c: c.pop("annotations"),
        "not in COCO format.* named 'annotations'",
    ),
    "wrong list": (lambda c: c.update(images=[3]), "not in COCO format: .* named 'images'"),
    "missing file": (
        lambda c: c["images"][0].update(file_name="gone.png"),
        r"1 of 2 images are missing, such as 'gone.png' \(image 42\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_coco_fault_is_an_error_that_names_the_entry(fault, content, tmp_path):
    change, message = FAULTS[fault]
    change(content)
    images, file = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        CocoSource(images, file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [\n  1,, 2]}', "labels.json: invalid json at line 2, column 5"),
        ("", "labels.json: invalid json at line 1, column 1"),
        ("[1]", "labels.json: not in COCO format"),
        ("[" * 100_000, "labels.json: not json text"),
        ("9" * 5000, "labels.json: not json text"),
        ('{"images": [], "images": [1]}', "labels.json: .*key 'images' occurs twice in the object"),
        (
            '{"annotations": [{"id": 7, "bbox": [1, 2, 3, 4], "bbox": [1]}]}',
            r"labels.json: .*key 'bbox' occurs twice in the object .*'id': 7",
        ),
        (r'{"\u001b[2J": 1, "\u001b[2J": 1}', r"key '\\x1b\[2J' occurs twice"),
    ],
)
def test_coco_file_of_another_format_is_an_error(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        CocoSource(*write(tmp_path, text))


def test_coco_file_or_folder_that_is_missing_is_an_error(content, tmp_path):
    images, file = write(tmp_path, content)
    with pytest.raises(UserError, match=r"gone\.json: annotation file is missing"):
        CocoSource(images, tmp_path / "gone.json")
    with pytest.raises(UserError, match="gone: folder of images is missing"):
        CocoSource(tmp_path / "gone", file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"labels\.json: not json text"):
        CocoSource(images, file)


def test_coco_repeated_key_is_truncated_in_the_error(tmp_path):
    key = '"' + "k" * 100_000 + '"'
    with pytest.raises(UserError, match="occurs twice") as error:
        CocoSource(*write(tmp_path, f"{{{key}: 1, {key}: 2}}"))
    assert len(str(error.value)) < len(str(tmp_path)) + 600


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_coco_file_that_is_not_regular_is_an_error(content, tmp_path, make):
    images, file = write(tmp_path, content)
    file.unlink()
    make(file)
    with pytest.raises(UserError, match=r"labels\.json: is not a regular file"):
        CocoSource(images, file)


def test_coco_ground_truth_does_not_check_repeated_keys_again(content, tmp_path, monkeypatch):
    source = CocoSource(*write(tmp_path, content))
    monkeypatch.setattr(json_text, "_check_unique", None)  # a call would fail
    assert len(source.ground_truth()["annotations"]) == 5


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="shared/data/coco_mini is absent")
def test_coco_mini_has_the_known_images_and_boxes():
    config = Config()
    config.data.val_images = str(COCO_MINI / "val2017")
    config.data.val_annotations = str(COCO_MINI / "annotations" / "instances_val2017.json")
    source = open_source(config, "val")
    assert (len(source), len(source.categories)) == (200, 80)
    assert sum(source.num_boxes(i) for i in range(200)) == 1653
    assert sum(int(record.ignore.sum()) for record in source) == 11
    first = source[0]
    assert (first.image_id, source.categories[first.labels[0]].name) == (285, "bear")
    np.testing.assert_allclose(first.boxes, [[1.43, 68.81, 586.0, 632.75]], rtol=1e-6)
    assert decode(first).shape == (640, 586, 3)
