"""VOC source: both layouts, boxes as in the original, and errors that name the xml file."""

import os
from pathlib import Path

import numpy as np
import pytest

from nanodet_jax.config import Config
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.records import decode
from nanodet_jax.data.sources.voc import VocSource, require_voc_class_names
from nanodet_jax.errors import UserError
from tests.builders import voc_xml, write_voc, write_voc_split

BCCD = Path(__file__).parents[4] / "shared" / "data" / "bccd"
CLASSES = ("cat", "dog")


def boxes_of(root: Path, *box: object) -> np.ndarray:
    """Read back the boxes of an image that is annotated with a single box."""
    write_voc_split(root, "train", {"a": voc_xml(("cat", *box))})
    return VocSource(root, "train", CLASSES)[0].boxes


def test_voc_records_have_labels_boxes_and_image_of_the_xml(tmp_path):
    two = voc_xml(("dog", 10, 20, 30.5, 60), (" cat ", 1, 2, 3, 4), filename="other.png")
    write_voc_split(tmp_path, "train", {"b": two, "a": voc_xml(filename="gone.jpg")})
    (tmp_path / "train" / "images" / "b.png").rename(tmp_path / "train" / "images" / "other.png")
    (tmp_path / "train" / "annotations" / "._a.xml").write_text("left by macOS")
    source = VocSource(tmp_path, "train", CLASSES)
    assert source.categories == ((1, "cat"), (2, "dog"))
    empty, record = source
    assert [(r.image_id, r.name) for r in source] == [(1, "a.png"), (2, "other.png")]
    assert (empty.boxes.shape, source.num_boxes(0), source.num_boxes(1)) == ((0, 4), 0, 2)
    assert source.image_size(1) == (record.height, record.width)
    np.testing.assert_array_equal(record.boxes, [[10, 20, 30.5, 60], [1, 2, 3, 4]])
    np.testing.assert_array_equal(record.labels, [1, 0])
    np.testing.assert_array_equal(record.areas, [820, 4])
    assert not record.ignore.any()
    assert decode(record).shape == (80, 100, 3)
    truth = source.ground_truth()
    assert truth["annotations"][0]["bbox"] == [10, 20, 20.5, 40]
    assert [item["category_id"] for item in truth["annotations"]] == [2, 1]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # As in the original, the corner moves in and the width stays.
        ((-5, -3, 20, 30), [[0, 0, 25, 33]]),
        # The width is limited to the image's width, but the right edge is not limited.
        ((50, 40, 400, 500), [[50, 40, 150, 120]]),
        ((5, 5, 5.5, 30), []),
        ((5, 5, 5, 5), []),
        (("1e1", " 7 ", "20.25", "30"), [[10, 7, 20.25, 30]]),
    ],
)
def test_voc_box_beyond_the_image_is_clipped_as_in_the_original(box, expected, tmp_path):
    np.testing.assert_array_equal(boxes_of(tmp_path, *box), np.reshape(expected, (-1, 4)))


def test_voc_box_of_an_image_of_unknown_size_is_not_clipped(tmp_path):
    write_voc_split(tmp_path, "train", {"a": voc_xml(("cat", 1, 2, 90, 70), width=0, height=0)})
    record = VocSource(tmp_path, "train", CLASSES)[0]
    assert (record.boxes.tolist(), record.width) == ([[1, 2, 90, 70]], 0)


@pytest.mark.parametrize("inside", [".", "VOC2007"])
def test_voc2007_layout_is_read(inside, tmp_path):
    base = tmp_path / inside
    texts = {"3": voc_xml(("dog", 1, 1, 9, 9)), "1": voc_xml(("cat", 1, 1, 9, 9)), "2": voc_xml()}
    write_voc(base / "Annotations", base / "JPEGImages", texts, suffix=".JPG")
    lists = base / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("3  1\n\n1 -1\n")
    (lists / "val.txt").write_text("2\n")
    assert require_voc_class_names(tmp_path) == CLASSES
    assert [r.name for r in VocSource(tmp_path, "train", CLASSES)] == ["1.JPG", "3.JPG"]
    assert [r.name for r in VocSource(tmp_path, "val", CLASSES)] == ["2.JPG"]
    (lists / "val.txt").write_text("2\n4\n")
    with pytest.raises(UserError, match=r"4\.xml: is missing but listed in .*val\.txt"):
        VocSource(tmp_path, "val", CLASSES)


def test_voc_classes_of_both_splits_are_from_train_or_the_config(tmp_path):
    write_voc_split(tmp_path, "train", {"a": voc_xml(("dog", 1, 1, 9, 9), ("cat", 1, 1, 9, 9))})
    write_voc_split(tmp_path, "val", {"b": voc_xml(("dog", 1, 1, 9, 9))})
    config = Config()
    config.data.format, config.data.root = "voc", str(tmp_path)
    val = open_source(config, "val")
    assert (val.categories, val[0].labels.tolist()) == (((1, "cat"), (2, "dog")), [1])
    write_voc_split(tmp_path, "val", {"b": voc_xml(("dog", 1, 1, 9, 9), ("ape", 1, 1, 9, 9))})
    val = open_source(config, "val")  # a class of this split alone comes after the others
    assert [category.name for category in val.categories] == ["cat", "dog", "ape"]
    assert val[0].labels.tolist() == [1, 2]
    assert len(open_source(config, "train").categories) == 2
    write_voc_split(tmp_path, "val", {"b": voc_xml(("dog", 1, 1, 9, 9))})
    config.data.classes = ("dog", "cat")
    assert open_source(config, "val")[0].labels.tolist() == [0]
    config.data.classes = ("cat",)
    assert open_source(config, "val")[0].labels.tolist() == []


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;</annotation>'
FAULTS = {
    "inverted": (voc_xml(("cat", 9, 1, 5, 9)), r"object 1 \(cat\) has an inverted box"),
    "nan": (voc_xml(("cat", 1, "nan", 5, 9)), "bndbox/ymin is 'nan', not a finite number"),
    "text": (voc_xml(("cat", 1, 1, "five", 9)), "bndbox/xmax is 'five', not a finite number"),
    "no box": ("<annotation><object><name>cat</name></object></annotation>", "xmin is ''"),
    "no name": (voc_xml(("", 1, 1, 5, 9)), "object 1 has no name"),
    "unknown class": (
        voc_xml(("cow", 1, 1, 5, 9)),
        "class 'cow' is not one of .*: cat, dog",
    ),
    "size": (voc_xml(width="wide"), "size/width is 'wide', not a finite number"),
    "negative size": (voc_xml(height=-3), "must be whole numbers of pixels"),
    "broken": ("<annotation><object>", "invalid xml: no element found: line 1"),
    "empty": ("", "invalid xml"),
    "entities": (BOMB, "declares a DOCTYPE, which is not allowed"),
    "encoding": ('<?xml version="1.0" encoding="x-none"?><annotation/>', "x-none"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_voc_fault_is_an_error_that_names_the_xml(fault, tmp_path):
    text, message = FAULTS[fault]
    write_voc_split(tmp_path, "train", {"bad": text})
    with pytest.raises(UserError, match=rf"bad\.xml: .*{message}") as error:
        VocSource(tmp_path, "train", CLASSES)
    assert "\n" not in str(error.value)


def test_voc_doctype_in_utf16_is_an_error(tmp_path):
    write_voc_split(tmp_path, "train", {"bad": ""})
    text = f'<?xml version="1.0" encoding="UTF-16"?>{BOMB}'
    (tmp_path / "train" / "annotations" / "bad.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match=r"bad\.xml: declares a DOCTYPE"):
        require_voc_class_names(tmp_path)


def test_voc_xml_that_is_a_pipe_is_an_error(tmp_path):
    write_voc_split(tmp_path, "train", {"a": voc_xml()})
    os.mkfifo(tmp_path / "train" / "annotations" / "b.xml")
    with pytest.raises(UserError, match=r"b\.xml: cannot be read: is not a regular file"):
        VocSource(tmp_path, "train", CLASSES)


def test_voc_folder_or_image_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(UserError, match="gone: folder is missing"):
        VocSource(tmp_path / "gone", "train", CLASSES)
    with pytest.raises(UserError, match=r"no VOC annotations .* ImageSets/Main/train\.txt"):
        VocSource(tmp_path, "train", CLASSES)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="images: folder is missing"):
        VocSource(tmp_path, "train", CLASSES)
    write_voc_split(tmp_path, "train", {})
    with pytest.raises(UserError, match="annotations: no xml files"):
        VocSource(tmp_path, "train", CLASSES)
    write_voc_split(tmp_path, "train", {"a": voc_xml(filename="b.jpg")})
    with pytest.raises(UserError, match=r"annotations: no objects in any xml file \(1 read\)"):
        require_voc_class_names(tmp_path)
    (tmp_path / "train" / "images" / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.xml: no image 'b\.jpg' or a\.\* in .*images"):
        VocSource(tmp_path, "train", CLASSES)
    with pytest.raises(UserError, match=r"config\.data\.classes: 'cat' is listed twice"):
        VocSource(tmp_path, "train", ("cat", "cat"))


@pytest.mark.skipif(not BCCD.is_dir(), reason="shared/data/bccd is absent")
def test_bccd_has_the_known_images_and_boxes():
    classes = require_voc_class_names(BCCD)
    assert classes == ("Platelets", "RBC", "WBC")
    train, val = (VocSource(BCCD, split, classes) for split in ("train", "val"))
    assert (len(train), len(val)) == (292, 72)
    assert sum(train.num_boxes(i) for i in range(292)) == 3941
    assert sum(val.num_boxes(i) for i in range(72)) == 945
    np.testing.assert_array_equal(train[0].boxes[0], [260, 177, 491, 376])
    assert decode(train[0]).shape == (480, 640, 3)
