"""Detections against ground truth, judged by pycocotools: COCO's twelve numbers, and every class.

Letters: n detections of one image, K classes.
"""

import contextlib
import io
import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nanodet_jax.data.records import Category
from nanodet_jax.errors import UserError

IOUS = "mean over IoU 0.50, 0.55 .. 0.95"
MEANINGS = {  # in the order of pycocotools' `stats`
    "AP": IOUS,
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small objects: area up to 32 x 32 pixels",
    "APm": "medium objects: 32 x 32 to 96 x 96 pixels",
    "APl": "large objects: from 96 x 96 pixels",
    "AR1": "1 detection per image",
    "AR10": "10 detections per image",
    "AR100": "100 detections per image",
    "ARs": "100 detections per image, small objects",
    "ARm": "100 detections per image, medium objects",
    "ARl": "100 detections per image, large objects",
}
TABLE_WIDTH = 100  # characters


def to_coco(
    image_id: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    categories: Sequence[Category],
) -> list[dict[str, Any]]:
    """Detections of one image as rows of a COCO result file.

    Args:
      image_id: as the ground truth names the image.
      boxes: [n, 4] xyxy, pixels of the image.
      scores: [n] in [0, 1].
      labels: [n] integers, 0 .. K-1.
      categories: K classes in label order.

    Returns:
      n dicts of python numbers: image_id, category_id, bbox (x, y, width, height), score.
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=-1)
    return [
        {
            "image_id": int(image_id),
            "category_id": categories[int(label)].id,
            "bbox": box,
            "score": float(score),
        }
        for box, score, label in zip(xywh.tolist(), scores, labels, strict=True)
    ]


def coco_metrics(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    categories: Sequence[Category],
    image_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Average precision and recall as COCO defines them, computed by pycocotools.

    Args:
      ground_truth: content of a COCO file; `area` (that of the box), `iscrowd` (0) and annotation
        ids may be missing. Not changed.
      results: rows as `to_coco` makes them, of any number of images. Not changed.
      categories: the K classes that count, in label order.
      image_ids: the images that count, if not all of the ground truth; results of others do not.

    Returns:
      The twelve numbers by the names in `MEANINGS`, and `per_class`, a dict from class name to
      its AP and AP50, in label order (where classes share a name: "name (id 3)"). All are floats
      in [0, 1], not rounded, or -1 where there is no object to find, as in pycocotools.

    Raises:
      UserError: if a result is of an image or a category that is not known, or has a number that
        is not finite: pycocotools takes a box of nan for a match with any object.
    """
    known_images = {image["id"] for image in ground_truth["images"]}
    chosen = known_images if image_ids is None else set(image_ids)
    known_categories = {category.id for category in categories}
    if chosen - known_images:
        raise UserError(f"image {min(chosen - known_images)} is not in the ground truth")
    for row in results:
        _check(row, known_images, known_categories)

    judge = COCOeval(iouType="bbox")
    judge.cocoGt = _index(ground_truth, categories, _fill(ground_truth["annotations"]))
    judge.cocoDt = _index(ground_truth, categories, _fill(results))
    judge.params.imgIds = sorted(chosen)
    judge.params.catIds = sorted(known_categories)
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    metrics: dict[str, Any] = {name: float(x) for name, x in zip(MEANINGS, judge.stats)}

    # [IoU, recall, class, all areas, 100 detections] -> [class, IoU, recall]
    precision = np.moveaxis(judge.eval["precision"][:, :, :, 0, -1], 2, 0)
    by_id = dict(zip(judge.params.catIds, precision))
    names = Counter(category.name for category in categories)
    metrics["per_class"] = {
        name if names[name] == 1 else f"{name} (id {id})": {
            "AP": float(np.mean(by_id[id])),  # -1 everywhere if there is no object, else nowhere
            "AP50": float(np.mean(by_id[id][0])),
        }
        for id, name in categories
    }
    return metrics


def format_table(metrics: dict[str, Any]) -> str:
    """The result of `coco_metrics` as plain text: twelve lines in words, then all classes.

    Classes are in label order, read column by column; "-" stands where there is no object.
    """
    lines = ['Average precision (AP), at most 100 detections per image ("-": no such object)']
    for name, meaning in MEANINGS.items():
        if name == "AR1":
            lines += ["", f"Average recall (AR), {IOUS}, at most"]
        lines.append(f"  {name:<5} {_number(metrics[name])}  {meaning}")
    cells = _class_cells(metrics["per_class"])
    if len(cells) > 1:
        width = _width(cells[0])
        # Few classes stay in one column; many fill the line.
        columns = min(max(1, TABLE_WIDTH // (width + 4)), math.ceil(len(cells) / 11))
        rows = math.ceil((len(cells) - 1) / columns)
        header, *body = cells
        lines += ["", "    ".join([header] * columns)]
        lines += ["    ".join(body[row::rows]) for row in range(rows)]
    return "\n".join(lines) + "\n"


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as json, wholly or not at all: readers never see half a file.

    Raises:
      UserError: naming the path, if it cannot be written.
      ValueError: on nan or infinity, which json does not know.
    """
    path = Path(path)
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: replace is atomic
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _check(row: dict[str, Any], images: set[int], categories: set[int]) -> None:
    where = f"detection in image {row['image_id']}"
    if row["image_id"] not in images:
        raise UserError(f"{where}: the ground truth has no such image")
    if row["category_id"] not in categories:
        raise UserError(f"{where}: category {row['category_id']} is not among the classes")
    if not all(map(math.isfinite, (*row["bbox"], row["score"]))):
        raise UserError(f"{where}: bbox {row['bbox']}, score {row['score']} must be finite")


def _fill(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies with all that pycocotools reads, numbered from 1: it takes id 0 for "no match"."""
    return [
        {
            "id": id,
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": row["bbox"],
            "area": row.get("area", row["bbox"][2] * row["bbox"][3]),
            "iscrowd": row.get("iscrowd", 0),
            "score": row.get("score", 1.0),
        }
        for id, row in enumerate(rows, start=1)
    ]


def _index(
    ground_truth: dict[str, Any], categories: Sequence[Category], rows: list[dict[str, Any]]
) -> COCO:
    """Built here rather than by `loadRes`, which fails on an empty list and changes its input."""
    coco = COCO()
    coco.dataset = {
        "images": ground_truth["images"],
        "categories": [category._asdict() for category in categories],
        "annotations": rows,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _number(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else "    -"


def _class_cells(per_class: dict[str, dict[str, float]]) -> list[str]:
    """A heading, then one cell per class, all equally wide."""
    longest = max([_width(name) for name in per_class] + [len("class")])
    cells = [f"{'class':<{longest}}     AP   AP50"]
    for name, values in per_class.items():
        gap = " " * (longest - _width(name))
        cells.append(f"{name}{gap}  {_number(values['AP'])}  {_number(values['AP50'])}")
    return cells


def _width(text: str) -> int:
    """Columns of a terminal: Chinese, Japanese and Korean letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
