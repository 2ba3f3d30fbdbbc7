"""Both evaluators against a direct use of pycocotools, on random and on degenerate data."""

import functools
import json
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nanodet_jax.data.records import Category
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation import coco_metrics as evaluation
from nanodet_jax.evaluation.coco_metrics import (
    HOTCOCO_VERSION,
    METRIC_DESCRIPTIONS,
    choose_evaluator,
    coco_metrics,
    to_coco_results,
)

REPO = Path(__file__).parents[2]
SHARED = REPO.parent / "shared"
ABSENT = choose_evaluator() != "hotcoco"
HAS_HOTCOCO = pytest.mark.skipif(ABSENT, reason=f"hotcoco {HOTCOCO_VERSION} is not installed")
EVALUATORS = ["pycocotools", pytest.param("hotcoco", marks=HAS_HOTCOCO)]

SMALL, MEDIUM = 32.0**2, 96.0**2  # pixels: where COCO's size ranges end
BORDERS = [
    area for edge in (SMALL, MEDIUM) for area in (edge, *np.nextafter(edge, [0, 2 * edge]).tolist())
]
KINDS = {
    "plain": {},
    "one score": {"levels": 1},
    "few scores": {"levels": 4},
    "crowds": {"crowd": 0.5},
    "overlaps on the thresholds": {"grid": 10},
    "overlaps on the thresholds, one score": {"grid": 10, "levels": 1},
    "areas on the borders": {"areas": BORDERS},
    "areas of any kind": {"areas": [0, 1, 1e10, 1.1e10, -5.0]},
    "boxes without area": {"flat": 0.4},
    "boxes outside": {"corner": (-500, 500)},
    "coordinates beyond float32": {"corner": (1e9, 1e9 + 250)},
    "negative sides": {"smallest": -40},
    "twice the same": {"copies": 1, "levels": 3},
    "over 100 in an image": {"extra": 150, "classes": 1, "levels": 30},
    "images without objects": {"objects": 1},
    "no detections": {"detected": False},
    "one class": {"classes": 1},
    "classes without objects": {"classes": 9, "objects": 2},
    "some images": {"chosen": 0.5},
    "no image": {"chosen": 0.0},
    "huge ids": {"ids": (10**18 - 60, 10**18)},
    "ids that float64 does not tell apart": {"ids": (2**53, 2**53 + 60)},
    "negative ids": {"ids": (-(10**18), 60 - 10**18)},
}


def hostile(
    seed,
    *,
    ids=(0, 60),
    classes=3,
    objects=6,
    extra=5,
    levels=0,
    crowd=0.1,
    grid=0,
    areas=(),
    flat=0.03,
    corner=(-20, 250),
    smallest=4,
    copies=0.1,
    detected=True,
    chosen=1.0,
):
    """Return random ground truth, results, categories and image ids, with some kind of oddity.

    Args:
      ids: of images, classes and annotations, drawn from this range without order or pattern.
      classes: K; two of them may share a name.
      objects: upper bound in an image. Each is detected about three times, or not at all.
      extra: upper bound of detections in an image that belong to no object.
      levels: number of different scores; 0 for any.
      crowd: fraction of the objects that are crowds.
      grid: box corners and sides are multiples of this, so that ious are round numbers.
      areas: `area` of some annotations, whatever their boxes.
      flat: fraction of boxes without width or height.
      corner: range of the upper left corners.
      smallest: lower bound of the sides of a box.
      copies: fraction of duplicated detections.
      detected: False for no detections at all.
      chosen: fraction of images to evaluate.
    """
    random = np.random.default_rng([seed, *map(ord, str(ids))])

    def draw(count):
        return (ids[0] + random.permutation(ids[1] - ids[0])[:count]).tolist()

    def boxes(count):
        sides = smallest + np.exp(random.uniform(0, 5, (count, 2)))
        drawn = np.concatenate([random.uniform(*corner, (count, 2)), sides], axis=-1)
        if grid:
            drawn = np.ceil(drawn / grid) * grid
        drawn[random.random(count) < flat, random.integers(2, 4)] = 0
        return drawn

    categories = tuple(Category(id, str(random.choice(["a", "b", "c"]))) for id in draw(classes))
    images = draw(5)
    annotations, results = [], []
    for image in images:
        true = boxes(random.integers(0, objects + 1))
        labels = random.integers(0, classes, len(true))
        for box, label, id in zip(true.tolist(), labels, draw(len(true))):
            row = {"image_id": image, "category_id": categories[label].id, "bbox": box}
            optional = {"iscrowd": int(random.random() < crowd), "ignore": 1, "id": id}
            if areas:
                optional["area"] = float(random.choice(areas))
            annotations.append(row | {k: v for k, v in optional.items() if random.random() < 0.7})
        other = boxes(random.integers(0, extra + 1))
        near = np.tile(true, (3, 1))
        step = random.normal(0, 1, near.shape) * random.choice([0, 1, 5])
        near += np.rint(step) * grid if grid else step
        near[:, 2:] = np.maximum(near[:, 2:], min(smallest, 0))
        guesses = np.concatenate([np.tile(labels, 3), random.integers(0, classes, len(other))])
        scores = random.random(len(guesses))
        if levels:
            scores = np.ceil(scores * levels) / levels
        rows = [
            {"image_id": image, "category_id": categories[label].id, "bbox": box, "score": score}
            for box, label, score in zip(
                [*near.tolist(), *other.tolist()], guesses, scores.tolist()
            )
        ]
        results += [row for row in rows for _ in range(1 + (random.random() < copies))]
    order = random.permutation(len(results) if detected else 0)
    counted = None if chosen == 1 else images[: round(chosen * len(images))]
    truth = {"images": [{"id": image} for image in images], "annotations": annotations}
    return truth, [results[place] for place in order], categories, counted


def pycocotools(truth, results, categories, image_ids):
    """Return the twelve metrics, and AP and AP50 of each class, from pycocotools."""
    truth_index, found = COCO(), COCO()
    truth_index.dataset = {
        "images": truth["images"],
        "categories": [category._asdict() for category in categories],
        "annotations": [
            {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0} | row | {"id": id}
            for id, row in enumerate(truth["annotations"], start=1)
        ],
    }
    truth_index.createIndex()
    if results:
        found = truth_index.loadRes([dict(row) for row in results])
    else:
        found.dataset = {"annotations": []}
        found.createIndex()
    coco_eval = COCOeval(truth_index, found, "bbox")
    if image_ids is not None:
        coco_eval.params.imgIds = image_ids
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    precision = coco_eval.eval["precision"][:, :, :, 0, 2]  # [IoU, recall, class by id]
    ranks = np.argsort(np.argsort([category.id for category in categories]))
    classes = [[precision[:, :, k].mean(), precision[0, :, k].mean()] for k in ranks]
    return np.array([*coco_eval.stats, *np.ravel(classes)])


def ours(truth, results, categories, image_ids, evaluator):
    """Return the same numbers as `pycocotools` from `coco_metrics`."""
    metrics = coco_metrics(truth, results, categories, image_ids, evaluator)
    classes = [[row["AP"], row["AP50"]] for row in metrics["per_class"].values()]
    return np.array([*(metrics[name] for name in METRIC_DESCRIPTIONS), *np.ravel(classes)])


@functools.cache
def cases(kind):
    """Return ten cases of a kind, and what pycocotools computes for each."""
    drawn = [hostile(seed, **KINDS[kind]) for seed in range(10)]
    return [(case, pycocotools(*case)) for case in drawn]


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_evaluators_agree_with_pycocotools(kind, evaluator):
    for case, expected in cases(kind):
        np.testing.assert_allclose(ours(*case, evaluator), expected, rtol=0, atol=1e-9)
    scores = np.array([expected[0] for _, expected in cases(kind)])
    if kind not in ("no detections", "no image"):  # most cases are not trivial
        assert np.mean((scores > 0.01) & (scores < 0.99)) >= 0.4


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("weights", ["nanodet-m_320", "nanodet-plus-m_320"])
def test_metrics_of_published_weights_equal_pycocotools(weights, evaluator):
    recorded = SHARED / "reference" / f"detections_{weights}.npz"
    annotations = SHARED / "data" / "coco_mini" / "annotations" / "instances_val2017.json"
    if not recorded.is_file() or not annotations.is_file():
        pytest.skip("needs shared/reference and shared/data/coco_mini")
    truth = json.loads(annotations.read_text())
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    categories = tuple(Category(row["id"], row["name"]) for row in truth["categories"])
    results, images = [], []
    with np.load(recorded) as file:
        for k in range(int(file["count"])):
            found = file[f"{k}/detections"]
            images.append(ids[str(file[f"{k}/file"])])
            labels = found[:, 5].astype(int)
            results += to_coco_results(images[-1], found[:, :4], found[:, 4], labels, categories)
    expected = pycocotools(truth, results, categories, images)
    assert 0.2 < expected[0] < 0.8
    case = truth, results, categories, images
    np.testing.assert_allclose(ours(*case, evaluator), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_box_whose_area_underflows_matches_nothing(evaluator):
    # pycocotools takes its iou, 0 / 0, for a match.
    truth, results, categories, _ = hostile(0, classes=1, crowd=0)
    image = truth["images"][0]["id"]
    tiny = {"image_id": image, "category_id": categories[0].id, "bbox": [0, 0, 1e-200, 1e-200]}
    truth["annotations"].append(tiny)
    found = [*results, {**tiny, "score": 2.0}]
    missed = [*results, {**tiny, "bbox": [9, 9, 0, 0], "score": 2.0}]
    ap50 = [
        coco_metrics(truth, rows, categories, evaluator=evaluator)["AP50"]
        for rows in (found, missed)
    ]
    assert ap50[0] == ap50[1] > 0


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("side", [float("nan"), float("inf")])
def test_object_with_non_finite_box_is_rejected(side, evaluator):
    truth, results, categories, _ = hostile(0)
    truth["annotations"][0]["bbox"] = [0, 0, side, 5]
    with pytest.raises(UserError, match=f"object in image {truth['annotations'][0]['image_id']}"):
        coco_metrics(truth, results, categories, evaluator=evaluator)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_null_iscrowd_counts_as_zero(evaluator):
    truth, results, categories, _ = hostile(0, crowd=0)
    expected = coco_metrics(truth, results, categories, evaluator=evaluator)
    for row in truth["annotations"]:
        row["iscrowd"] = None
    assert coco_metrics(truth, results, categories, evaluator=evaluator) == expected


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_area_of_a_detection_is_that_of_its_box(evaluator):
    truth, results, categories, _ = hostile(0)
    expected = coco_metrics(truth, results, categories, evaluator=evaluator)
    results = [{**row, "area": 1e6} for row in results]
    assert coco_metrics(truth, results, categories, evaluator=evaluator) == expected


def test_hotcoco_is_the_default_only_in_the_tested_version(monkeypatch):
    text = (REPO / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert extras["fast"] == [f"hotcoco=={HOTCOCO_VERSION}"]
    for version, chosen in ((HOTCOCO_VERSION, "hotcoco"), ("99.0", "pycocotools")):
        monkeypatch.setattr(evaluation.metadata, "version", {"hotcoco": version}.get)
        assert choose_evaluator() == chosen
        assert choose_evaluator("pycocotools") == "pycocotools"
    with pytest.raises(UserError, match=f"pip install hotcoco=={HOTCOCO_VERSION}"):
        choose_evaluator("hotcoco")


def test_pycocotools_is_the_default_without_hotcoco(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(evaluation.metadata, "version", version)
    assert choose_evaluator() == choose_evaluator("pycocotools") == "pycocotools"
    with pytest.raises(UserError, match="hotcoco"):
        choose_evaluator("hotcoco")


@HAS_HOTCOCO
def test_requested_evaluator_is_used(monkeypatch):
    def refuse(**_):
        raise AssertionError("called")

    case = hostile(0)
    monkeypatch.setattr(evaluation, "COCOeval", refuse)
    ours(*case, None)
    ours(*case, "hotcoco")
    with pytest.raises(AssertionError, match="called"):
        ours(*case, "pycocotools")
