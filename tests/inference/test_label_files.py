"""Annotations written by `LabelFiles`, read again by the sources of this project."""

import json
import shutil

import numpy as np
import pytest

from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.data.sources.yolo import YoloSource
from nanodet_jax.errors import UserError
from nanodet_jax.inference.label_files import LabelFiles
from tests.builders import write_image

NAMES = ("cat", "dog", "no: yaml")
BOXES = np.array([[1.25, 2, 30.5, 20], [0, 0, 40, 30], [5, 5, 5.5, 9]], np.float32)
LABELS = np.array([2, 0, 1], np.int32)


@pytest.fixture
def files(tmp_path):
    """Images in a folder and in its subfolder, one of them rotated by its EXIF orientation."""
    photos = tmp_path / "photos"
    return [
        write_image(photos / "a.png"),
        write_image(photos / "in" / "b.jpg", np.zeros((40, 30, 3), np.uint8), orientation=6),
        write_image(photos / "in" / "empty.png"),
    ]


def write(kind, out, tmp_path, files):
    labels = LabelFiles(kind, out, [tmp_path / "photos"], files, NAMES)
    labels.add(files[0], (30, 40), BOXES, LABELS)
    labels.add(files[1], (30, 40), BOXES[:1], LABELS[:1])
    labels.add(files[2], (30, 40), BOXES[:0], LABELS[:0])
    labels.close()
    return labels


def check(source):
    assert [category.name for category in source.categories] == list(NAMES)
    a, b, empty = (source[index] for index in range(3))
    np.testing.assert_allclose(a.boxes, BOXES[:2], atol=1e-5)  # the third is too narrow
    np.testing.assert_array_equal(a.labels, LABELS[:2])
    np.testing.assert_allclose(b.boxes, BOXES[:1], atol=1e-5)
    np.testing.assert_array_equal(b.labels, LABELS[:1])
    assert len(empty.boxes) == 0
    assert [(record.height, record.width) for record in (a, b, empty)] == [(30, 40)] * 3


def test_coco_labels_are_read_by_the_source_with_the_original_images(files, tmp_path):
    labels = write("coco", tmp_path / "out", tmp_path, files)
    assert labels.path == tmp_path / "out" / "labels.json"
    source = CocoSource(tmp_path / "photos", labels.path)
    assert [source[i].name for i in range(3)] == ["a.png", "in/b.jpg", "in/empty.png"]
    check(source)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["labels.json"]
    assert str(tmp_path / "photos") in labels.next_step()


def test_yolo_labels_are_read_by_the_source_once_the_images_are_copied(files, tmp_path):
    out = tmp_path / "out"
    labels = write("yolo", out, tmp_path, files)
    written = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert written == [
        "classes.txt", "data.yaml", "labels/a.txt", "labels/in/b.txt", "labels/in/empty.txt",
    ]  # fmt: skip
    assert (out / "classes.txt").read_text() == "cat\ndog\nno: yaml\n"
    assert (out / "labels" / "a.txt").read_text().splitlines()[1] == (
        "0 0.50000000 0.50000000 1.00000000 1.00000000"
    )
    step = f"copy the images from {tmp_path / 'photos'} to {out / 'images'}"
    assert step in labels.next_step()
    shutil.copytree(tmp_path / "photos", out / "images")
    for split in ("train", "val"):
        check(YoloSource(out, split))


def test_an_image_given_twice_is_labeled_once(files, tmp_path):
    labels = LabelFiles("coco", tmp_path, [files[0], files[0]], [files[0]] * 2, NAMES)
    for _ in range(2):
        labels.add(files[0], (30, 40), BOXES[:1], LABELS[:1])
    labels.close()
    content = json.loads(labels.path.read_text())
    assert len(content["images"]) == len(content["annotations"]) == 1


def test_names_are_relative_to_the_common_folder_of_the_given_paths(files, tmp_path):
    given = [tmp_path / "photos" / "in", files[0]]
    labels = LabelFiles("coco", tmp_path, given, files, NAMES)
    assert labels.root == tmp_path / "photos"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("coco", "labels.json"), ("yolo", "labels"), ("yolo", "data.yaml"), ("yolo", "classes.txt")],
)
def test_existing_labels_are_never_overwritten(files, tmp_path, kind, name):
    path = tmp_path / name
    path.mkdir() if name == "labels" else path.write_text("corrected by hand")
    with pytest.raises(UserError, match=f"{name}: already exists, .*use a different --out"):
        LabelFiles(kind, tmp_path, [tmp_path / "photos"], files, NAMES)
    assert name == "labels" or path.read_text() == "corrected by hand"


def test_images_that_would_share_a_label_file_are_refused(files, tmp_path):
    files.append(write_image(tmp_path / "photos" / "A.jpg"))
    with pytest.raises(UserError, match=r"a\.png and .*A\.jpg: would share .* A\.txt; rename"):
        LabelFiles("yolo", tmp_path / "out", [tmp_path / "photos"], files, NAMES)
    LabelFiles("coco", tmp_path / "out", [tmp_path / "photos"], files, NAMES)


def test_yolo_labels_below_a_folder_of_the_name_images_are_refused(tmp_path):
    file = write_image(tmp_path / "set" / "images" / "train" / "a.png")
    with pytest.raises(UserError, match=r"relative to .*set/images; run predict on that folder"):
        LabelFiles("yolo", tmp_path / "out", [tmp_path / "set"], [file], NAMES)
    LabelFiles("yolo", tmp_path / "out", [tmp_path / "set" / "images"], [file], NAMES)


def test_name_that_a_source_would_reject_is_refused(tmp_path):
    file = write_image(tmp_path / "a\nb.png")
    with pytest.raises(UserError, match="labels cannot contain this file name; rename the file"):
        LabelFiles("coco", tmp_path / "out", [tmp_path], [file], NAMES)
