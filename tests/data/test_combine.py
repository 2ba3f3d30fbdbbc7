"""Several datasets at once: ids, names, the union of classes and the ground truth."""

import json

import numpy as np
import pytest

from nanodet_jax.config import Config, Data
from nanodet_jax.data.class_map import class_names
from nanodet_jax.data.combine import CombinedSource
from nanodet_jax.data.faults import Fault, FaultKind
from nanodet_jax.data.open_source import open_source
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation.coco_metrics import coco_metrics, to_coco_results
from tests.builders import voc_xml, write_coco, write_voc_split, write_yolo_image

COCO = {
    "images": [{"id": 9, "file_name": "a.png", "width": 40, "height": 30}],
    "annotations": [{"id": 0, "image_id": 9, "category_id": 5, "bbox": [1, 2, 10, 20]}],
    "categories": [{"id": 5, "name": "owl"}],
}


@pytest.fixture
def roots(tmp_path):
    """Write a dataset in each of three formats; return their entries in `data.sources`."""
    write_voc_split(tmp_path / "voc", "train", {"a": voc_xml(("dog", 1, 1, 9, 9))})
    write_voc_split(tmp_path / "voc", "val", {"b": voc_xml(("cat", 1, 1, 9, 9))})
    write_yolo_image(tmp_path / "yolo", "images/train/a.png", "0 .5 .5 .25 .5\n1 .5 .5 .5 .5\n")
    write_yolo_image(tmp_path / "yolo", "images/val/c.png", "1 .5 .5 .5 .5\n")
    yaml = "{train: images/train, val: images/val, names: [cow, dog]}"
    (tmp_path / "yolo" / "data.yaml").write_text(yaml)
    write_coco(tmp_path / "coco", COCO, {"a.png": np.zeros((30, 40, 3), np.uint8)})
    for name in ("train.json", "val.json"):
        (tmp_path / "coco" / name).write_text(json.dumps(COCO))
    return tuple(f"{name}:{tmp_path / name}" for name in ("voc", "yolo", "coco"))


def config_of(**fields):
    return Config(data=Data(**fields))


def test_sources_in_several_formats_are_one(roots):
    source = open_source(config_of(sources=roots), "train")
    assert isinstance(source, CombinedSource)
    assert source.categories == ((1, "dog"), (2, "cow"), (3, "owl"))
    assert [(record.image_id, record.name) for record in source] == [
        (1, "voc/a.png"), (2, "yolo/images/train/a.png"), (3, "coco/a.png")
    ]  # fmt: skip
    assert [record.labels.tolist() for record in source] == [[0], [1, 0], [2]]
    assert [source.num_boxes(index) for index in range(3)] == [1, 2, 1]
    assert [source.image_size(index) for index in range(3)] == [(80, 100), (80, 100), (30, 40)]
    with pytest.raises(IndexError):
        source[3]
    truth = source.ground_truth()
    assert [(image["id"], image["file_name"]) for image in truth["images"]] == [
        (record.image_id, record.name) for record in source
    ]
    found = [(item["id"], item["image_id"], item["category_id"]) for item in truth["annotations"]]
    assert found == [(1, 1, 1), (2, 2, 2), (3, 2, 1), (4, 3, 3)]


def test_sources_are_evaluated_against_their_ground_truth(roots):
    source = open_source(config_of(sources=roots), "train")
    results = []
    for record in source:
        scores = np.ones(len(record.boxes))
        results += to_coco_results(
            record.image_id, record.boxes, scores, record.labels, source.categories
        )
    metrics = coco_metrics(source.ground_truth(), results, source.categories)
    assert metrics["AP"] == pytest.approx(1)
    assert list(metrics["per_class"]) == ["dog", "cow", "owl"]


def test_sources_with_selected_classes_have_these(roots):
    config = config_of(sources=roots, classes=("animal", "owl"), merge=("dog:animal", "cat:animal"))
    train, val = open_source(config, "train"), open_source(config, "val")
    assert class_names(train) == class_names(val) == ["animal", "owl"]
    assert [record.labels.tolist() for record in train] == [[0], [0], [1]]
    # Validation has the class cat, which training lacks.
    assert [record.labels.tolist() for record in val] == [[0], [0], [1]]


def test_sources_are_split_together(roots):
    config = config_of(sources=(*roots[:2], roots[1].replace("yolo:", "voc:")))
    with pytest.raises(UserError, match=r"yolo: no VOC annotations for train"):
        open_source(config, "train")
    config = config_of(sources=roots, val_fraction=0.3)
    parts = [open_source(config, split) for split in ("train", "val")]
    # The black images of two datasets are copies of each other.
    assert sorted(len(part) for part in parts) == [1, 2]
    names = [record.name for part in parts for record in part]
    assert sorted(names) == ["coco/a.png", "voc/a.png", "yolo/images/train/a.png"]


def test_sources_of_one_folder_name_are_numbered(roots, tmp_path):
    write_voc_split(tmp_path / "more" / "voc", "train", {"a": voc_xml(("cat", 1, 1, 9, 9))})
    config = config_of(sources=(roots[0], f"voc:{tmp_path}/more/voc"))
    names = [record.name for record in open_source(config, "train")]
    assert names == ["voc-1/a.png", "voc-2/a.png"]


def test_source_without_validation_images_is_named(roots, tmp_path):
    write_voc_split(tmp_path / "new", "train", {"a": voc_xml(("cat", 1, 1, 9, 9))})
    without = f"voc:{tmp_path / 'new'}"
    with pytest.raises(Fault) as caught:
        open_source(config_of(sources=(*roots, without)), "val")
    assert caught.value.kind is FaultKind.NO_VALIDATION
    assert str(caught.value).startswith(
        f"config.data.sources: {without}: {tmp_path / 'new'}: no VOC"
    )
