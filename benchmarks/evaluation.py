"""Time from detections to COCO's twelve metrics: making result rows, and evaluating them.

Each installed evaluator is measured. By default, there are 5,000 images. On average they have as
many objects per image as COCO's validation set. Each image has 100 detections, the most that
suppression keeps.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from nanodet_jax.data.records import Category, coco_ground_truth, make_record
from nanodet_jax.evaluation.coco_metrics import (
    METRIC_DESCRIPTIONS,
    Evaluator,
    choose_evaluator,
    coco_metrics,
    to_coco_results,
)

CATEGORIES = tuple(Category(id, f"class {id}") for id in range(1, 81))
OBJECTS = 7.3  # per image
CROWDS = 0.01  # fraction of the objects
SIDE = 640  # of an image, pixels

_Detections = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes, scores, labels of an image


def random_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Draw boxes [count, 4] xyxy in all of COCO's size ranges."""
    sides = np.exp(random.uniform(np.log(8), np.log(400), (count, 2)))
    corners = random.uniform(0, 0.6 * SIDE, (count, 2))
    return np.concatenate([corners, corners + sides], axis=-1)


def random_truth(images: int) -> dict[str, Any]:
    """Draw the ground truth for this number of images, as the content of a COCO file."""
    random = np.random.default_rng(0)
    counts = random.multinomial(round(OBJECTS * images), np.full(images, 1 / images))
    records = []
    for id, count in enumerate(counts, start=1):
        boxes = random_boxes(random, count)
        labels = random.integers(0, len(CATEGORIES), count)
        crowds = random.random(count) < CROWDS
        areas = 0.6 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        records.append(
            make_record(id, f"{id}.jpg", pixels, (SIDE, SIDE), boxes, labels, crowds, areas)
        )
    return coco_ground_truth(records, CATEGORIES)


def random_detections(truth: dict[str, Any], count: int) -> dict[int, _Detections]:
    """Draw `count` detections for each image; return them by image id.

    They are boxes [count, 4] xyxy, scores [count], some of which are equal, and labels [count]. As
    far as `count` allows, each object has a detection near it.
    """
    random = np.random.default_rng(1)
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for row in truth["annotations"]:
        objects[row["image_id"]].append(row)
    found: dict[int, _Detections] = {}
    for id, rows in objects.items():
        boxes, labels = random_boxes(random, count), random.integers(0, len(CATEGORIES), count)
        true = np.array([row["bbox"] for row in rows]).reshape(len(rows), 4)[:count]
        true[:, 2:] += true[:, :2]
        boxes[: len(true)] = true + random.normal(0, 4, true.shape)
        labels[: len(true)] = [row["category_id"] - 1 for row in rows[:count]]
        scores = np.round(random.uniform(0.05, 1, count), 3).astype(np.float32)
        found[id] = boxes.astype(np.float32), scores, labels.astype(np.int32)
    return found


def timed(run: Callable[[], Any], runs: int) -> tuple[Any, dict[str, float]]:
    """Return the result of the last run, and a row of times in milliseconds."""
    walls, cpus = [], []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    row = {"wall_ms": statistics.median(walls), "wall_min_ms": min(walls)}
    return result, row | {"cpu_ms": statistics.median(cpus)}


def benchmark(images: int, detections: int, runs: int) -> dict[str, dict[str, float]]:
    """Measure and print times in milliseconds.

    Args:
      images: number of images.
      detections: number of detections in each image.
      runs: number of runs to take the median of; pycocotools runs once.

    Returns:
      Rows by name, with `wall_ms`, `wall_min_ms` and `cpu_ms`: one for converting arrays to result
      rows, and one for each installed evaluator, for computing metrics from result rows. The row of
      hotcoco also has `difference`, the largest difference from pycocotools.
    """
    truth = random_truth(images)
    found = random_detections(truth, detections)

    def make_rows() -> list[dict[str, Any]]:
        return [row for id, one in found.items() for row in to_coco_results(id, *one, CATEGORIES)]

    def compute_metrics(evaluator: Evaluator) -> np.ndarray:
        metrics = coco_metrics(truth, results, CATEGORIES, evaluator=evaluator)
        return np.array([metrics[name] for name in METRIC_DESCRIPTIONS])

    results, row = timed(make_rows, runs)
    measured = {"detections to rows": row}
    reference, row = timed(lambda: compute_metrics("pycocotools"), 1)
    measured["rows to numbers, pycocotools"] = row
    if choose_evaluator() == "hotcoco":
        numbers, row = timed(lambda: compute_metrics("hotcoco"), runs)
        row["difference"] = float(np.max(np.abs(numbers - reference)))
        measured["rows to numbers, hotcoco"] = row
    print(f"{images} images, {len(results)} detections, {len(truth['annotations'])} objects")
    for name, row in measured.items():
        print(f"{name:30s}", *(f"{key} {value:.6g}" for key, value in row.items()))
    return measured
