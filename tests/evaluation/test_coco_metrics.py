"""Metrics against a direct use of pycocotools, and cases on which pycocotools fails."""

import copy
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nanodet_jax.data.records import Category
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation.coco_metrics import (
    METRIC_DESCRIPTIONS,
    coco_metrics,
    format_table,
    to_coco_results,
)

CATEGORIES = (Category(1, "cat"), Category(3, "dog"), Category(7, "bird"))


def scene(seed=0, images=12, step=0.0):
    """Return ground truth with crowds, and detections of which some match.

    Scores are multiples of `step`. Boxes cover all three size ranges of COCO.
    """
    random = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [c._asdict() for c in CATEGORIES]}
    results = []
    for image_id in random.permutation(images).tolist():
        truth["images"].append({"id": image_id, "width": 640, "height": 480})
        count = int(random.integers(0, 9))
        sizes = np.exp(random.uniform(np.log(8), np.log(300), (count, 2)))
        corners = random.uniform(0, 300, (count, 2))
        boxes = np.concatenate([corners, corners + sizes], axis=-1)
        labels = random.integers(0, len(CATEGORIES), count)
        for box, label in zip(boxes, labels):
            width, height = box[2:] - box[:2]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES[label].id,
                    "bbox": [float(box[0]), float(box[1]), float(width), float(height)],
                    "area": float(width * height * 0.7),
                    "iscrowd": int(random.random() < 0.15),
                }
            )
        near = np.tile(boxes, (3, 1)) + random.normal(0, 4, (3 * count, 4))
        near = np.maximum(near, np.concatenate([near[:, :2] + 1, near[:, :2] + 1], axis=-1))
        scores = random.uniform(0.05, 1, 3 * count)
        if step:
            scores = np.round(scores / step) * step
        guesses = np.where(random.random(3 * count) < 0.8, np.tile(labels, 3), 0)
        results += to_coco_results(image_id, near, scores, guesses, CATEGORIES)
    return truth, results


def direct(truth, results, image_ids=None):
    """Evaluate with pycocotools as its documentation does."""
    truth, results = copy.deepcopy(truth), copy.deepcopy(results)
    index = COCO()
    index.dataset = truth
    index.createIndex()
    coco_eval = COCOeval(index, index.loadRes(results), "bbox")
    if image_ids is not None:
        coco_eval.params.imgIds = list(image_ids)
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval


def perfect(truth):
    return [
        {**{k: row[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for row in truth["annotations"]
        if not row["iscrowd"]
    ]


def numbers(metrics):
    return [metrics[name] for name in METRIC_DESCRIPTIONS]


@pytest.mark.parametrize("step", [0.0, 0.25])  # 0.25: nearly all scores are tied
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_pycocotools(seed, step):
    truth, results = scene(seed, step=step)
    metrics = coco_metrics(truth, results, CATEGORIES)
    coco_eval = direct(truth, results)
    assert numbers(metrics) == coco_eval.stats.tolist()
    assert 0 < metrics["AP"] < 1
    for k, name in enumerate(["cat", "dog", "bird"]):
        precision = coco_eval.eval["precision"][:, :, k, 0, 2]
        assert metrics["per_class"][name]["AP"] == pytest.approx(precision.mean(), abs=1e-12)
        assert metrics["per_class"][name]["AP50"] == pytest.approx(precision[0].mean(), abs=1e-12)


def test_ap_is_the_mean_over_classes():
    metrics = coco_metrics(*scene(), CATEGORIES)
    classes = metrics["per_class"].values()
    for name in ("AP", "AP50"):
        assert np.mean([c[name] for c in classes]) == pytest.approx(metrics[name], abs=1e-12)


def test_per_class_metrics_follow_the_order_of_categories():
    truth, results = scene()
    metrics = coco_metrics(truth, results, CATEGORIES)
    reversed_order = coco_metrics(truth, results, CATEGORIES[::-1])
    assert reversed_order == metrics
    assert list(reversed_order["per_class"]) == ["bird", "dog", "cat"]


def test_image_ids_restrict_the_evaluation():
    truth, results = scene()
    metrics = coco_metrics(truth, results, CATEGORIES, image_ids=[5, 2, 7])
    assert numbers(metrics) == direct(truth, results, [2, 5, 7]).stats.tolist()
    assert numbers(metrics) != numbers(coco_metrics(truth, results, CATEGORIES))
    assert set(numbers(coco_metrics(truth, results, CATEGORIES, image_ids=[]))) == {-1}


def test_perfect_detections_have_ap_one():
    truth, _ = scene()
    metrics = coco_metrics(truth, perfect(truth), CATEGORIES)
    names = [name for name in METRIC_DESCRIPTIONS if name not in ("AR1", "AR10")]
    assert all(metrics[name] == pytest.approx(1) for name in names)
    assert metrics["per_class"]["bird"] == pytest.approx({"AP": 1, "AP50": 1})


def test_perfect_detections_from_float32_xyxy_have_ap_one():
    truth, _ = scene()
    results = []
    for row in perfect(truth):
        x, y, width, height = row["bbox"]
        boxes = np.array([[x, y, x + width, y + height]], np.float32)
        label = np.array([[c.id for c in CATEGORIES].index(row["category_id"])])
        results += to_coco_results(row["image_id"], boxes, np.ones(1), label, CATEGORIES)
    assert coco_metrics(truth, results, CATEGORIES)["AP"] == pytest.approx(1)


def test_metrics_are_zero_without_detections_and_minus_one_without_objects():
    truth, results = scene()
    assert set(numbers(coco_metrics(truth, [], CATEGORIES))) == {0}
    empty = {**truth, "annotations": []}
    for found in ([], results):
        metrics = coco_metrics(empty, found, CATEGORIES)
        assert set(numbers(metrics)) == {-1}
        assert metrics["per_class"]["cat"] == {"AP": -1, "AP50": -1}


def test_class_without_objects_is_left_out_of_the_mean():
    truth, results = scene()
    truth["annotations"] = [row for row in truth["annotations"] if row["category_id"] != 3]
    metrics = coco_metrics(truth, results, CATEGORIES)
    assert numbers(metrics) == direct(truth, results).stats.tolist()
    assert metrics["per_class"]["dog"] == {"AP": -1, "AP50": -1}
    others = [metrics["per_class"][name]["AP"] for name in ("cat", "bird")]
    assert metrics["AP"] == pytest.approx(np.mean(others), abs=1e-12)


def test_class_without_detections_has_ap_zero():
    truth, results = scene()
    results = [row for row in results if row["category_id"] != 3]
    assert coco_metrics(truth, results, CATEGORIES)["per_class"]["dog"] == {"AP": 0, "AP50": 0}


def test_detections_in_a_crowd_are_not_false_positives():
    truth = {"images": [{"id": 1}], "annotations": []}
    for iscrowd, box in ((0, [0, 0, 50, 50]), (1, [100, 100, 200, 200])):
        row = {"image_id": 1, "category_id": 1, "bbox": box, "iscrowd": iscrowd}
        truth["annotations"].append(row)
    in_crowd = np.array([[110, 110, 150, 150], [160, 160, 220, 220], [0, 0, 50, 50]])
    scores, labels = np.array([0.9, 0.8, 0.7]), np.zeros(3, int)
    results = to_coco_results(1, in_crowd, scores, labels, CATEGORIES)
    assert coco_metrics(truth, results, CATEGORIES)["AP"] == pytest.approx(1)
    truth["annotations"].pop()
    assert coco_metrics(truth, results, CATEGORIES)["AP"] == pytest.approx(1 / 3)


def test_missing_area_iscrowd_and_ids_have_defaults():
    truth, results = scene()
    for row in truth["annotations"]:
        row["area"], row["iscrowd"] = row["bbox"][2] * row["bbox"][3], 0
    metrics = coco_metrics(truth, results, CATEGORIES)
    for row in truth["annotations"]:
        del row["area"], row["iscrowd"], row["id"]
    assert coco_metrics(truth, results, CATEGORIES) == metrics


def test_annotation_with_id_zero_can_be_matched():
    # pycocotools takes a match with annotation 0 for no match.
    truth, _ = scene()
    for row in truth["annotations"]:
        row["id"] -= 1
    assert coco_metrics(truth, perfect(truth), CATEGORIES)["AP"] == pytest.approx(1)


def test_coco_metrics_neither_changes_arguments_nor_prints(capsys):
    truth, results = scene()
    before = copy.deepcopy((truth, results))
    first = coco_metrics(truth, results, CATEGORIES)
    assert coco_metrics(truth, results, CATEGORIES) == first
    assert (truth, results) == before
    assert capsys.readouterr() == ("", "")


def test_classes_with_equal_names_are_listed_with_their_ids():
    truth, results = scene()
    categories = (Category(1, "cat"), Category(3, "dog"), Category(7, "cat"))
    metrics = coco_metrics(truth, results, categories)
    assert list(metrics["per_class"]) == ["cat (id 1)", "dog", "cat (id 7)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "image 99"),
        ({"category_id": 2}, "category 2"),
        ({"score": float("nan")}, "finite"),
        ({"bbox": [0.0, float("nan"), 5.0, 5.0]}, "finite"),
        ({"bbox": [0.0, 0.0, float("inf"), 5.0]}, "finite"),
    ],
)
def test_invalid_result_is_rejected(change, message):
    truth, results = scene()
    with pytest.raises(UserError, match=message):
        coco_metrics(truth, [*results, {**results[0], **change}], CATEGORIES)


def test_unknown_image_id_is_rejected():
    with pytest.raises(UserError, match="image 99"):
        coco_metrics(*scene(), CATEGORIES, image_ids=[1, 99])


def test_result_rows_are_json_serializable():
    boxes = np.array([[1.5, 2, 11.5, 22], [0, 0, 3, 4]], np.float32)
    rows = to_coco_results(
        np.int64(5), boxes, np.array([0.5, 0.25], np.float32), np.array([2, 0]), CATEGORIES
    )
    assert json.loads(json.dumps(rows)) == [
        {"image_id": 5, "category_id": 7, "bbox": [1.5, 2.0, 10.0, 20.0], "score": 0.5},
        {"image_id": 5, "category_id": 1, "bbox": [0.0, 0.0, 3.0, 4.0], "score": 0.25},
    ]
    assert to_coco_results(5, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), CATEGORIES) == []


@pytest.mark.parametrize("count", [1, 3, 10, 11, 80, 365])
def test_table_lists_every_metric_and_class_once_in_label_order(count):
    names = [f"class{label}" for label in range(count)]
    metrics = {name: i / 20 for i, name in enumerate(METRIC_DESCRIPTIONS)}
    metrics["per_class"] = {name: {"AP": i / 1000, "AP50": -1} for i, name in enumerate(names)}
    lines = format_table(metrics).splitlines()
    assert max(map(len, lines)) <= 100
    for name, value in list(metrics.items())[:-1]:
        assert sum(line.split()[:2] == [name, f"{value:.3f}"] for line in lines) == 1
    header = next(i for i, line in enumerate(lines) if line.startswith("class "))
    body = [line.split() for line in lines[header + 1 :]]
    by_column = [row[at : at + 3] for at in range(0, len(body[0]), 3) for row in body if row[at:]]
    assert by_column == [[name, f"{i / 1000:.3f}", "-"] for i, name in enumerate(names)]


def test_table_aligns_wide_characters_and_long_names():
    metrics = dict.fromkeys(METRIC_DESCRIPTIONS, 0.5)
    metrics["per_class"] = {name: {"AP": 0.25, "AP50": 0.5} for name in ("猫", "x" * 120)}
    cat, long = format_table(metrics).splitlines()[-2:]
    assert len(long) == len(cat) + 1  # a wide character takes two columns
    assert format_table({**metrics, "per_class": {}}).count("\n") == 15
