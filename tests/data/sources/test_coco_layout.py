"""Layouts of COCO datasets: which files belong to a split of `config.data.root`."""

import json

import numpy as np
import pytest

from nanodet_jax.config import Config
from nanodet_jax.data.faults import FaultCounter, FaultKind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.data.sources.coco_layout import find_split
from nanodet_jax.errors import UserError
from tests.builders import write_coco

# Annotation file, its folder of images, and the split.
LAYOUTS = {
    "train/_annotations.coco.json": ("train", "train"),
    "valid/_annotations.coco.json": ("valid", "val"),
    "_annotations.coco.json": (".", "train"),
    "annotations/instances_train2017.json": ("train2017", "train"),
    "annotations/instances_val2014.json": ("images/val2014", "val"),
    "annotations/instances_val.json": ("images/val", "val"),
    "annotations/instances_default.json": ("images/default", "train"),
    "annotations/instances_Train.json": ("images/Train", "train"),
    "annotations/train.json": ("images", "train"),
    "result.json": (".", "train"),
    "val.json": ("val", "val"),
    "validation.json": (".", "val"),
}


def test_folder_of_annotations_as_root_names_the_folder_above(tmp_path):
    root = tmp_path / "annotations"
    root.mkdir()
    (root / "instances_train2017.json").write_text("{}")
    with pytest.raises(UserError, match="has annotations but no images; use ") as caught:
        find_split(root, "train")
    assert str(caught.value).endswith(f"--config.data.root={tmp_path}")
    (root / "a.JPG").touch()
    assert find_split(root, "train") == (root, root / "instances_train2017.json")


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_of_coco_is_found(name, tmp_path):
    images, split = LAYOUTS[name]
    for folder in (tmp_path / images, (tmp_path / name).parent):
        folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    assert find_split(tmp_path, split) == (tmp_path / images, tmp_path / name)


def test_layout_that_is_unknown_is_an_error_with_the_fix(tmp_path):
    with pytest.raises(UserError, match=r"gone: folder is missing"):
        find_split(tmp_path / "gone", "train")
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        find_split(tmp_path, "val")
    assert str(caught.value) == (
        f"{tmp_path}: no COCO annotations for val in this folder; "
        "split off some of the training images with --config.data.val_fraction=0.1, or train "
        "without validation with --config.data.val=none, or set config.data.val_images and "
        "config.data.val_annotations"
    )
    assert caught.value.kind is FaultKind.NO_VALIDATION
    (tmp_path / "empty").mkdir()
    (tmp_path / "result.json").unlink()
    with pytest.raises(UserError) as caught:
        find_split(tmp_path / "empty", "train")
    assert str(caught.value) == (
        f"{tmp_path / 'empty'}: no COCO annotations for train in this folder, such as "
        "train/_annotations.coco.json (Roboflow), annotations/instances_train2017.json (COCO), "
        "annotations/instances_default.json (CVAT), result.json (Label Studio), train.json; "
        "set config.data.train_images and config.data.train_annotations"
    )


def test_folder_of_one_split_of_roboflow_names_the_folder_above(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        find_split(tmp_path / "train", "val")
    assert str(caught.value) == (
        f"{tmp_path / 'train'}: no COCO annotations for val in this folder; the folder above "
        f"has both splits: use --config.data.root={tmp_path}"
    )


def content(**changes):
    """Return a COCO file of one image and two boxes, in the form of Roboflow."""
    boxes = [[1, 2, 10, 20], [30, 5, 15, 10]]
    annotations = [
        {"id": id, "image_id": 7, "category_id": 1, "bbox": box, "area": 150, "iscrowd": 0}
        for id, box in enumerate(boxes)
    ]
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": annotations,
        "categories": [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 1, "name": "RBC", "supercategory": "cells"},
            {"id": 2, "name": "WBC", "supercategory": "cells"},
        ],
        **changes,
    }


PIXELS = {"a.png": np.zeros((30, 40, 3), np.uint8)}


def test_super_category_of_roboflow_is_left_out_with_a_note(tmp_path):
    images, file = write_coco(tmp_path, content(), PIXELS)
    counter = FaultCounter()
    source = CocoSource(images, file, on_fault=counter)
    assert source.categories == ((1, "RBC"), (2, "WBC"))
    assert source[0].labels.tolist() == [0, 0]
    assert counter.notes("train")[0] == (
        "note: super-categories without boxes, left out of the classes in train: 1; the first: "
        f"{file}: category 0, 'cells', is a super-category of others"
    )


def test_category_0_with_boxes_or_of_no_other_is_a_class(tmp_path):
    used = content()
    used["annotations"][0]["category_id"] = 0
    unrelated = content()
    unrelated["categories"][0]["name"] = "other"
    for number, changed in enumerate((used, unrelated)):
        source = CocoSource(*write_coco(tmp_path / str(number), changed, PIXELS))
        assert [category.id for category in source.categories] == [0, 1, 2]


def test_box_outside_its_image_is_counted_and_kept(tmp_path):
    images, file = write_coco(tmp_path, content(), PIXELS)
    counter = FaultCounter()
    source = CocoSource(images, file, on_fault=counter)
    np.testing.assert_array_equal(source[0].boxes[1], [30, 5, 45, 15])
    assert counter.notes("val")[1:] == [
        "note: boxes outside their image in val: 1; the first: a.png (image 7): box "
        "[30, 5, 45, 15] extends beyond the 40x30 image"
    ]


def test_box_without_bbox_is_derived_and_counted(tmp_path):
    changed = content()
    for item in changed["annotations"]:
        x, y, w, h = item.pop("bbox")
        item["segmentation"] = [[x, y, x + w - 6, y, x + w - 6, y + h]]
    del changed["annotations"][0]["area"]
    images, file = write_coco(tmp_path, changed, PIXELS)
    counter = FaultCounter()
    source = CocoSource(images, file, on_fault=counter)
    np.testing.assert_array_equal(source[0].boxes, [[1, 2, 5, 22], [30, 5, 39, 15]])
    np.testing.assert_array_equal(source[0].areas, [40, 150])
    assert counter.notes("train")[1:] == [
        "note: boxes derived from polygons or masks, because bbox is missing in train: 2; the "
        f"first: {file}: annotation 0: bbox=[1.0, 2.0, 4.0, 20.0] is derived from its segmentation"
    ]
    truth = source.ground_truth()["annotations"]
    assert [item["bbox"] for item in truth] == [[1, 2, 4, 20], [30, 5, 9, 10]]
    assert [item["area"] for item in truth] == [40, 150]
    changed["annotations"][1]["segmentation"] = [[1, 2]]
    file.write_text(json.dumps(changed))
    with pytest.raises(UserError) as caught:
        CocoSource(images, file)
    assert str(caught.value) == (
        f"{file}: annotation 1 (image 7): has no bbox, and a polygon of the segmentation needs at "
        "least three points x, y; add a bbox"
    )
    assert caught.value.kind is FaultKind.NUMBERS


def test_root_of_coco_is_used_instead_of_the_four_paths(tmp_path):
    write_coco(tmp_path, content(), PIXELS)
    (tmp_path / "labels.json").rename(tmp_path / "train.json")
    config = Config()
    config.data.root = str(tmp_path)
    assert len(open_source(config, "train")) == 1
    with pytest.raises(UserError, match=r"no COCO annotations for val .*val_fraction=0\.1"):
        open_source(config, "val")
