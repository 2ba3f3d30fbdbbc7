"""Evaluation of a dataset by a detector that is a simple function of the pixels."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from nanodet_jax import config as configs
from nanodet_jax.data.records import Category, coco_ground_truth, make_record
from nanodet_jax.data.sources.in_memory import InMemorySource
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation.coco_metrics import coco_metrics
from nanodet_jax.evaluation.evaluate import run_evaluation, with_classes_of
from nanodet_jax.structures import Detections

SIZES = [(60, 60), (60, 30), (30, 60), (60, 60), (30, 60), (60, 60), (60, 60)]  # height, width


class Images(list):
    """Seven records of three shapes with descending ids; image k has one gray level and one box."""

    categories = (Category(4, "gray"),)

    def __init__(self):
        for k, (height, width) in enumerate(SIZES):
            pixels = np.full((height, width, 3), 30 * (k + 1), np.uint8)
            box = [[0, 0, width, height]]
            size = (height, width)
            self.append(make_record(90 - k, f"{k}.png", pixels, size, box, [0], [False], [width]))

    def ground_truth(self):
        return coco_ground_truth(self, self.categories)


def detect(variables, images, inverse_warps, sizes, padded_sizes):
    """Detect two boxes in every image, one of them the whole image; in padding images too."""
    whole = np.concatenate([np.zeros_like(sizes), sizes[:, ::-1]], axis=-1)
    gray = np.abs(images[:, 0, 0, 0]) / 10
    return Detections(
        boxes=np.stack([whole / 2, whole], axis=1),
        scores=np.stack([gray, gray / 2], axis=1),
        labels=np.zeros((len(images), 2), np.int32),
        valid=np.full((len(images), 2), True),
        truncated=np.full(len(images), False),
    )


def evaluated(batch_size, source=None, **kwargs):
    config = configs.Config(input_size=(64, 64))
    config.data.keep_ratio = True
    config.data.batch_size = batch_size
    config.data.max_unreadable = 0.2
    return run_evaluation(detect, None, source or Images(), config, progress=False, **kwargs)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_results_have_the_order_of_the_source_for_every_batch_size(batch_size):
    found = evaluated(batch_size, num_examples=2)
    assert [row["image_id"] for row in found.results] == [90 - k // 2 for k in range(14)]
    assert found.results == evaluated(1).results
    assert [row["bbox"] for row in found.results[2:4]] == [[0, 0, 15, 30], [0, 0, 30, 60]]
    truth = Images().ground_truth()
    assert found.metrics == coco_metrics(truth, found.results, Images.categories)
    assert found.metrics["AR100"] == pytest.approx(1)
    assert found.metrics["AP"] < 0.7  # half of the detections are false positives
    assert list(found.examples) == [0, 1]


def test_unreadable_image_counts_as_one_without_detections(capsys):
    source = Images()
    source[2] = replace(source[2], image=b"none")
    found = evaluated(3, source, num_examples=3)
    assert [row["image_id"] for row in found.results] == [90, 90, 89, 89, 87, 87, 86, 86, 85, 85,
                                                          84, 84]  # fmt: skip
    assert found.metrics == coco_metrics(source.ground_truth(), found.results, Images.categories)
    assert found.metrics["AR100"] == pytest.approx(6 / 7)
    assert sorted(found.examples) == [0, 1, 3]
    assert "note: 2.png (image 88): not an image that OpenCV can read" in capsys.readouterr().out


def test_evaluation_returns_none_when_stopped():
    assert evaluated(2, should_stop=lambda: True) is None


def dataset(*names):
    """Return a source of one image with a box of each class."""
    count = len(names)
    boxes = [[0, 0, 9 + label, 9] for label in range(count)]
    record = make_record(
        7, "a.png", b"", (50, 60), boxes, range(count), [False] * count, [81] * count
    )
    return InMemorySource(tuple(Category(id, name) for id, name in enumerate(names, 1)), [record])


WEIGHTS = SimpleNamespace(class_names=("cat", "guide dog", "cow"))


def test_dataset_has_the_classes_of_the_weights_in_their_order():
    same = dataset("cat", "guide_dog", "cow")
    assert with_classes_of(WEIGHTS, same) is same
    found = with_classes_of(WEIGHTS, dataset("cow", "guide_dog"))
    assert [category.name for category in found.categories] == ["cat", "guide dog", "cow"]
    assert found[0].labels.tolist() == [2, 1]
    ids = {category.name: category.id for category in found.categories}
    annotations = found.ground_truth()["annotations"]
    assert [item["category_id"] for item in annotations] == [ids["cow"], ids["guide dog"]]


def test_dataset_with_classes_that_the_weights_lack_is_an_error():
    other = dataset("cat", "elk")
    with pytest.raises(UserError) as caught:
        with_classes_of(WEIGHTS, other)
    assert str(caught.value).startswith(
        "the weights have 3 classes, but the dataset has 2 (cat, elk); the weights lack elk; "
    )
    found = with_classes_of(WEIGHTS, other, exclude_others=True)
    assert found[0].labels.tolist() == [0]
