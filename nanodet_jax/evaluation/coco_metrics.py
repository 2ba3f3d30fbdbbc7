"""COCO's average precision and recall, as pycocotools defines them, and the AP of each class.

The evaluator is pycocotools (https://github.com/cocodataset/cocoapi) or, if it is installed,
hotcoco (https://pypi.org/project/hotcoco), which gives the same numbers in a fraction of the time.

Dimensions: n detections of one image, N boxes of all images, K classes.
"""

import contextlib
import io
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nanodet_jax.data.records import Category
from nanodet_jax.errors import UserError

ALL_IOUS = "mean over iou thresholds 0.50, 0.55 .. 0.95"
METRIC_DESCRIPTIONS = {  # in the order of pycocotools' `stats`
    "AP": ALL_IOUS,
    "AP50": "iou threshold 0.50",
    "AP75": "iou threshold 0.75",
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

Evaluator = Literal["pycocotools", "hotcoco"]
HOTCOCO_VERSION = "1.3.0"  # the version that the tests compare with pycocotools


def choose_evaluator(requested: Evaluator | None = None) -> Evaluator:
    """Return the requested evaluator; by default hotcoco if it is available, else pycocotools.

    hotcoco is available if version HOTCOCO_VERSION is installed. No other version is tested against
    pycocotools.

    Raises:
      UserError: if hotcoco is requested but is not available.
    """
    try:
        available = metadata.version("hotcoco") == HOTCOCO_VERSION
    except metadata.PackageNotFoundError:
        available = False
    if requested == "hotcoco" and not available:
        raise UserError(
            f"evaluator hotcoco: version {HOTCOCO_VERSION} is not installed; "
            f"run pip install hotcoco=={HOTCOCO_VERSION}"
        )
    return requested or ("hotcoco" if available else "pycocotools")


def to_coco_results(
    image_id: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    categories: Sequence[Category],
) -> list[dict[str, Any]]:
    """Convert detections of one image to rows of a COCO result file.

    Args:
      image_id: id of the image in the ground truth.
      boxes: [n, 4] xyxy, pixels of the image.
      scores: [n] in [0, 1].
      labels: [n] integers, 0 .. K-1.
      categories: K classes in label order.

    Returns:
      n dicts of Python numbers: image_id, category_id, bbox (x, y, width, height), score.
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
    evaluator: Evaluator | None = None,
) -> dict[str, Any]:
    """Compute average precision and recall as COCO defines them.

    Args:
      ground_truth: content of a COCO file. Annotation ids, `area` (default: the box's area) and
        `iscrowd` (default: 0) may be missing. Not changed.
      results: rows as `to_coco_results` returns them, for any number of images. Not changed.
      categories: the K classes to evaluate, in label order.
      image_ids: ids of the images to evaluate; default: all. Results for other images are ignored.
      evaluator: as for `choose_evaluator`. The numbers do not depend on it.

    Returns:
      The twelve metrics by the names in `METRIC_DESCRIPTIONS`, and `per_class`, a dict from class
      name to its AP and AP50, in label order ("name (id 3)" where classes have equal names). All
      are floats in [0, 1], not rounded, or -1 if there are no objects, as in pycocotools; see
      `to_json` for files.

    Raises:
      UserError: if `image_ids` contains an unknown image; if a result has an unknown image or
        category; if a box or score is not finite (pycocotools matches a nan box with any object);
        or as in `choose_evaluator`.
    """
    known_images = {image["id"] for image in ground_truth["images"]}
    chosen = known_images if image_ids is None else set(image_ids)
    known_categories = {category.id for category in categories}
    if chosen - known_images:
        raise UserError(f"image {min(chosen - known_images)} is not in the ground truth")
    for row in results:
        where = f"detection in image {row['image_id']}"
        if row["image_id"] not in known_images:
            raise UserError(f"{where}: the ground truth has no such image")
        if row["category_id"] not in known_categories:
            raise UserError(f"{where}: category {row['category_id']} is not among the classes")

    # Replace ids with their ranks. The evaluators sort images and classes by id, so the order of
    # ties is kept, and ids of any size work with both.
    images, classes = _ranks(chosen), _ranks(known_categories)
    objects = _columns(ground_truth["annotations"], images, classes)
    detections = _columns(results, images, classes)
    build = _hotcoco if choose_evaluator(evaluator) == "hotcoco" else _pycocotools
    coco_eval = build(objects, detections, len(images), len(classes))
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    metrics: dict[str, Any] = {
        name: float(x) for name, x in zip(METRIC_DESCRIPTIONS, coco_eval.stats)
    }

    # [iou, recall, class, all areas, 100 detections] -> [class, iou, recall]
    precision = np.moveaxis(coco_eval.eval["precision"][:, :, :, 0, -1], 2, 0)
    by_id = dict(zip(classes, precision))
    names = Counter(category.name for category in categories)
    metrics["per_class"] = {
        name if names[name] == 1 else f"{name} (id {id})": {
            "AP": float(np.mean(by_id[id])),  # all elements are -1 if the class has no objects
            "AP50": float(np.mean(by_id[id][0])),
        }
        for id, name in categories
    }
    return metrics


def to_json(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics as they are written to files: with None (null in json) instead of -1."""
    return {
        name: to_json(value) if isinstance(value, dict) else None if value == -1 else value
        for name, value in metrics.items()
    }


def format_table(metrics: dict[str, Any]) -> str:
    """Format the result of `coco_metrics` as text: the twelve metrics, then all classes.

    Classes are in label order, column by column; "-" marks a metric without objects.
    """
    lines = ['Average precision (AP), at most 100 detections per image ("-": no such objects)']
    for name, description in METRIC_DESCRIPTIONS.items():
        if name == "AR1":
            lines += ["", f"Average recall (AR), {ALL_IOUS}, at most"]
        lines.append(f"  {name:<5} {format_value(metrics[name])}  {description}")
    cells = _class_cells(metrics["per_class"])
    if len(cells) > 1:
        width = _width(cells[0])
        # Use about one column for every ten classes, as long as the columns fit in TABLE_WIDTH.
        columns = min(max(1, TABLE_WIDTH // (width + 4)), math.ceil(len(cells) / 11))
        rows = math.ceil((len(cells) - 1) / columns)
        header, *body = cells
        lines += ["", "    ".join([header] * columns)]
        lines += ["    ".join(body[row::rows]) for row in range(rows)]
    return "\n".join(lines) + "\n"


class _Columns(NamedTuple):
    """Fields of N objects or detections, of all images, named as in a COCO file."""

    image_id: np.ndarray  # [N] int64, the rank
    category_id: np.ndarray  # [N] int64, the rank
    bbox: np.ndarray  # [N, 4] float64, xywh
    area: np.ndarray  # [N] float64
    iscrowd: np.ndarray  # [N] int64, 0 or 1
    score: np.ndarray  # [N] float64


def _ranks(ids: Iterable[int]) -> dict[int, int]:
    """Number ids from 1 in ascending order."""
    return {id: rank for rank, id in enumerate(sorted(ids), start=1)}


def _columns(
    rows: Sequence[dict[str, Any]], images: Mapping[int, int], classes: Mapping[int, int]
) -> _Columns:
    """Collect the rows of these images and classes, with defaults for missing fields."""
    kept = [row for row in rows if row["image_id"] in images and row["category_id"] in classes]
    boxes = np.array([row["bbox"] for row in kept], np.float64).reshape(len(kept), 4)
    scores = np.array([row.get("score", 1.0) for row in kept], np.float64)
    finite = np.isfinite(boxes).all(axis=-1) & np.isfinite(scores)
    if not finite.all():
        row, score = kept[np.argmin(finite)], scores[np.argmin(finite)]
        where = f"{'detection' if 'score' in row else 'object'} in image {row['image_id']}"
        raise UserError(f"{where}: bbox {row['bbox']}, score {score} must be finite")
    areas = boxes[:, 2] * boxes[:, 3]
    # A box whose area underflows to 0 has an iou of 0 / 0, which pycocotools treats as a match and
    # hotcoco does not. Set its sides to 0, so that it matches nothing.
    boxes[areas == 0, 2:] = 0
    return _Columns(
        image_id=np.array([images[row["image_id"]] for row in kept], np.int64),
        category_id=np.array([classes[row["category_id"]] for row in kept], np.int64),
        bbox=boxes,
        area=np.array([row.get("area", area) for row, area in zip(kept, areas)], np.float64),
        iscrowd=np.array([bool(row.get("iscrowd")) for row in kept], np.int64),
        score=scores,
    )


def _pycocotools(objects: _Columns, detections: _Columns, images: int, classes: int) -> COCOeval:
    """Build pycocotools' evaluator, for images and classes with the ids 1, 2 and so on."""

    def index(columns: _Columns) -> COCO:
        coco = COCO()
        # Annotation ids start at 1, because id 0 means "no match" to pycocotools.
        coco.dataset["annotations"] = [
            {"id": id, **dict(zip(_Columns._fields, values))}
            for id, values in enumerate(zip(*(column.tolist() for column in columns)), start=1)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco

    coco_eval = COCOeval(iouType="bbox")
    coco_eval.cocoGt = index(objects)
    # A detection has the area of its box, as in `loadRes`. `loadRes` itself fails on an empty list.
    areas = detections.bbox[:, 2] * detections.bbox[:, 3]
    coco_eval.cocoDt = index(detections._replace(area=areas))
    coco_eval.params.imgIds = list(range(1, images + 1))
    coco_eval.params.catIds = list(range(1, classes + 1))
    return coco_eval


def _hotcoco(objects: _Columns, detections: _Columns, images: int, classes: int) -> Any:
    """Build hotcoco's evaluator, for images and classes with the ids 1, 2 and so on."""
    import hotcoco  # optional dependency

    truth = hotcoco.COCO.from_arrays(
        [{"id": id} for id in range(1, images + 1)],
        [{"id": id, "name": str(id)} for id in range(1, classes + 1)],
        objects.image_id,
        objects.category_id,
        objects.bbox,
        area=objects.area,
        iscrowd=objects.iscrowd,
    )
    rows = np.column_stack(
        [detections.image_id, detections.bbox, detections.score, detections.category_id]
    )
    return hotcoco.COCOeval(truth, truth.load_res(rows), "bbox")


def format_value(value: float | None, digits: int = 3) -> str:
    """Format one metric for a table; "-" if there are no objects."""
    return f"{value:.{digits}f}" if value is not None and value >= 0 else "    -"


def _class_cells(per_class: dict[str, dict[str, float]]) -> list[str]:
    """Return a heading and one cell for each class, all of equal width."""
    longest = max([_width(name) for name in per_class] + [len("class")])
    cells = [f"{'class':<{longest}}     AP   AP50"]
    for name, values in per_class.items():
        gap = " " * (longest - _width(name))
        ap, ap50 = format_value(values["AP"]), format_value(values["AP50"])
        cells.append(f"{name}{gap}  {ap}  {ap50}")
    return cells


def _width(text: str) -> int:
    """Return the width of text in a terminal, where East Asian wide characters take two columns."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
