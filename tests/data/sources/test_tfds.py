"""TFDS source: a COCO dataset that is converted and read back, all without TensorFlow."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanodet_jax.config import Config
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.records import decode
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.data.sources.tfds import TfdsSource, import_tfds
from nanodet_jax.data.sources.tfds_prepare import prepare
from nanodet_jax.errors import UserError
from tests.builders import noise, write_coco, write_image

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")

CATEGORIES = [{"id": 18, "name": "guide dog"}, {"id": 3, "name": "car"}]
# A crowd, an image without boxes, a box beyond the image, and one below one pixel.
ANNOTATIONS: list[dict[str, Any]] = [
    {"id": 10, "image_id": 1, "category_id": 18, "bbox": [1.5, 2.25, 10, 20], "area": 150.75},
    {"id": 11, "image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 30], "area": 9, "iscrowd": 1},
    {"id": 12, "image_id": 3, "category_id": 3, "bbox": [20, 10, 30, 10], "area": 300},
    {"id": 13, "image_id": 3, "category_id": 3, "bbox": [20, 10, 0.5, 10], "area": 5},
    {"id": 14, "image_id": 4, "category_id": 18, "bbox": [7, 9, 1, 1], "area": 0.5},
]


def write(folder: Path, ids: tuple[int, ...]) -> tuple[Path, Path]:
    """Write images of noise with these ids, and the COCO file with their annotations."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in ids],
        "annotations": [item for item in ANNOTATIONS if item["image_id"] in ids],
        "categories": CATEGORIES,
    }
    return write_coco(folder, content, {f"{id}.jpg": noise(30, 40, seed=id) for id in ids})


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Folder with train/ and val/ in COCO format, and out/ in the format of TFDS."""
    root = tmp_path_factory.mktemp("tfds")
    train, val = write(root / "train", (1, 2, 3)), write(root / "val", (4,))
    folder = prepare(*train, *val, root / "out", "tiny")
    assert folder == root / "out" / "tiny" / "1.0.0"
    return root


@pytest.mark.parametrize(("split", "tfds_split"), [("train", "train"), ("val", "validation")])
def test_tfds_records_are_those_of_the_converted_coco_files(split, tfds_split, written):
    coco = CocoSource(written / split / "images", written / split / "labels.json")
    annotations = written / split / "labels.json"
    source = TfdsSource("tiny:1.0.0", written / "out", tfds_split, annotations)
    assert source.categories == coco.categories == ((3, "car"), (18, "guide dog"))
    by_id = {record.image_id: record for record in source}
    assert sorted(by_id) == [record.image_id for record in coco]
    for expected in coco:
        found = by_id[expected.image_id]
        assert found.image == expected.image.read_bytes()
        assert (found.name, found.width, found.height) == (expected.name, 40, 30)
        boxes = np.minimum(expected.boxes, [40, 30, 40, 30])  # conversion clips to the image
        np.testing.assert_allclose(found.boxes, boxes, atol=1e-4)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.ignore, expected.ignore)
        np.testing.assert_array_equal(found.areas, np.floor(expected.areas))
        np.testing.assert_array_equal(decode(found), decode(expected))
    assert source.ground_truth() == coco.ground_truth()


def test_tfds_source_without_annotations_numbers_its_categories(written):
    source = TfdsSource("", written / "out" / "tiny" / "1.0.0", "train", annotations=None)
    assert source.categories == ((1, "car"), (2, "guide dog"))
    assert sorted(source.num_boxes(i) for i in range(len(source))) == [0, 1, 2]
    assert source.image_size(0) == (0, 0)
    truth = source.ground_truth()
    assert sorted(image["id"] for image in truth["images"]) == [1, 2, 3]
    crowd = next(item for item in truth["annotations"] if item["iscrowd"])
    np.testing.assert_allclose(crowd["bbox"], [0, 0, 40, 30], atol=1e-4)
    with pytest.raises(IndexError):
        source[3]


def test_tfds_is_opened_as_the_config_names_it(written):
    config = Config()
    config.data.format, config.data.name = "tfds", "tiny:1.0.0"
    config.data.root = str(written / "out")
    assert len(open_source(config, "train")) == 3
    config.data.val_annotations = str(written / "val" / "labels.json")
    assert open_source(config, "val").categories[1] == (18, "guide dog")


def test_tfds_annotations_with_other_categories_are_an_error(written, tmp_path):
    def with_categories(*categories: dict) -> TfdsSource:
        content = {"images": [], "annotations": [], "categories": list(categories)}
        (tmp_path / "other.json").write_text(json.dumps(content))
        return TfdsSource("tiny:1.0.0", written / "out", "train", tmp_path / "other.json")

    car, dog = {"id": 5, "name": "car"}, {"id": 6, "name": "guide_dog"}
    assert with_categories(dog, car).categories == ((5, "car"), (6, "guide_dog"))
    with pytest.raises(UserError, match=r"other\.json: has 1 categories, but .*tiny/1\.0\.0 has 2"):
        with_categories(car)
    with pytest.raises(UserError, match=r"other\.json: category 6 is 'cat', but 'guide dog' in"):
        with_categories(car, {"id": 6, "name": "cat"})


def test_tfds_dataset_or_split_that_is_missing_is_an_error(written):
    with pytest.raises(UserError, match="tiny/2: not a prepared TFDS dataset"):
        TfdsSource("tiny:2", written / "out", "train", None)
    with pytest.raises(UserError, match=r"1\.0\.0: no split 'test'; choose from train, validation"):
        TfdsSource("tiny:1.0.0", written / "out", "test", None)
    assert len(TfdsSource("tiny:1.0.0", written / "out", "train[:2]", None)) == 2
    with pytest.raises(UserError, match=r"no split 'train\[:x\]'") as error:
        TfdsSource("tiny:1.0.0", written / "out", "train[:x]", None)
    assert "\n" not in str(error.value)


def test_tfds_dataset_with_other_features_or_format_is_an_error(written, tmp_path):
    def edit(name: str, old: str, new: str) -> Path:
        folder = tmp_path / new
        folder.mkdir()
        for file in (written / "out" / "tiny" / "1.0.0").iterdir():
            text = file.read_bytes()
            (folder / file.name).write_bytes(
                text.replace(old.encode(), new.encode()) if file.name == name else text
            )
        return folder

    with pytest.raises(UserError, match="lacks the feature 'objects/is_crowd'"):
        TfdsSource("", edit("features.json", "is_crowd", "is_group"), "train", None)
    with pytest.raises(UserError, match="prepared as 'tfrecord'; only 'array_record'"):
        TfdsSource("", edit("dataset_info.json", "array_record", "tfrecord"), "train", None)


def test_tfds_prepare_rejects_names_images_and_categories(written, tmp_path):
    train, val = write(tmp_path / "train", (1, 2)), write(tmp_path / "val", (4,))
    with pytest.raises(UserError, match=r"--name=My-Set: use lower-case"):
        prepare(*train, *val, tmp_path, "My-Set")
    with pytest.raises(UserError, match=r"tiny/1\.0\.0: already exists"):
        prepare(*train, *val, written / "out", "tiny")

    data = (train[0] / "2.jpg").read_bytes()
    (train[0] / "2.jpg").write_bytes(data[:-9])
    with pytest.raises(UserError, match=r"2\.jpg \(image 2\): image is truncated"):
        prepare(*train, *val, tmp_path / "out", "tiny")
    assert not (tmp_path / "out" / "tiny" / "1.0.0").exists()
    write_image(tmp_path / "x.png").rename(train[0] / "2.jpg")
    with pytest.raises(UserError, match=r"2\.jpg: is not a JPEG file"):
        prepare(*train, *val, tmp_path / "out", "tiny")

    content = json.loads(val[1].read_text())
    content["categories"][0]["name"] = "car"
    val[1].write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"val/labels\.json: categories differ from"):
        prepare(*train, *val, tmp_path / "out", "tiny")
    train[1].write_text(json.dumps(json.loads(train[1].read_text()) | content))
    with pytest.raises(UserError, match="two categories are named 'car'"):
        prepare(val[0], val[1], val[0], val[1], tmp_path / "out", "tiny")


def test_tfds_package_that_is_missing_is_an_error_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    with pytest.raises(UserError, match=r"needs array_record; pip install 'nanodet_jax\[tfds\]'"):
        import_tfds()
