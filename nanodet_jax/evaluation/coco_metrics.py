"""Detections against ground truth, as pycocotools judges them: COCO's numbers, and every class.

Where hotcoco is installed, it serves instead: the same numbers in a fraction of the time.

Letters: n detections of one image, K classes.
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

Judge = Literal["pycocotools", "hotcoco"]
HOTCOCO = "1.3.0"  # the version that the tests compare with pycocotools


def choose_judge(asked: Judge | None = None) -> Judge:
    """The judge asked for; if none is, hotcoco where it is installed, else pycocotools.

    Raises:
      UserError: if hotcoco is asked for and not installed, or in a version that was not compared.
    """
    try:
        compared = metadata.version("hotcoco") == HOTCOCO
    except metadata.PackageNotFoundError:
        compared = False
    if asked == "hotcoco" and not compared:
        raise UserError(f"judge hotcoco is not installed: pip install hotcoco=={HOTCOCO}")
    return asked or ("hotcoco" if compared else "pycocotools")


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
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Average precision and recall as COCO defines them.

    Args:
      ground_truth: content of a COCO file; `area` (that of the box), `iscrowd` (0) and annotation
        ids may be missing. Not changed.
      results: rows as `to_coco` makes them, of any number of images. Not changed.
      categories: the K classes that count, in label order.
      image_ids: the images that count, if not all of the ground truth; results of others do not.
      judge: who computes, as `choose_judge` takes it. The numbers are the same.

    Returns:
      The twelve numbers by the names in `MEANINGS`, and `per_class`, a dict from class name to
      its AP and AP50, in label order (where classes share a name: "name (id 3)"). All are floats
      in [0, 1], not rounded, or -1 where there is no object to find, as in pycocotools.

    Raises:
      UserError: if a result is of an image or a category that is not known; if a box or score
        that counts is not finite: pycocotools takes a box of nan for a match with any object; and
        as `choose_judge`.
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

    # Ties between images, and the order of classes, follow the order of ids, so ranks may stand
    # for them: of any range, they fit every judge.
    images, classes = _ranks(chosen), _ranks(known_categories)
    objects = _columns(ground_truth["annotations"], images, classes)
    found = _columns(results, images, classes)
    evaluator_of = _hotcoco if choose_judge(judge) == "hotcoco" else _pycocotools
    evaluator = evaluator_of(objects, found, len(images), len(classes))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    metrics: dict[str, Any] = {name: float(x) for name, x in zip(MEANINGS, evaluator.stats)}

    # [IoU, recall, class, all areas, 100 detections] -> [class, IoU, recall]
    precision = np.moveaxis(evaluator.eval["precision"][:, :, :, 0, -1], 2, 0)
    by_id = dict(zip(classes, precision))
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


class _Columns(NamedTuple):
    """N boxes, of all images, by the names of a COCO file; a judge may not need all columns."""

    image_id: np.ndarray  # [N] int64, the rank
    category_id: np.ndarray  # [N] int64, the rank
    bbox: np.ndarray  # [N, 4] float64, xywh
    area: np.ndarray  # [N] float64
    iscrowd: np.ndarray  # [N] int64, 0 or 1
    score: np.ndarray  # [N] float64


def _ranks(ids: Iterable[int]) -> dict[int, int]:
    """1 for the lowest id, 2 for the next."""
    return {id: rank for rank, id in enumerate(sorted(ids), start=1)}


def _columns(
    rows: Sequence[dict[str, Any]], images: Mapping[int, int], classes: Mapping[int, int]
) -> _Columns:
    """The rows of these images and classes; what a row leaves out is filled in."""
    kept = [row for row in rows if row["image_id"] in images and row["category_id"] in classes]
    boxes = np.array([row["bbox"] for row in kept], np.float64).reshape(len(kept), 4)
    scores = np.array([row.get("score", 1.0) for row in kept], np.float64)
    finite = np.isfinite(boxes).all(axis=-1) & np.isfinite(scores)
    if not finite.all():
        row, score = kept[np.argmin(finite)], scores[np.argmin(finite)]
        where = f"{'detection' if 'score' in row else 'object'} in image {row['image_id']}"
        raise UserError(f"{where}: bbox {row['bbox']}, score {score} must be finite")
    areas = boxes[:, 2] * boxes[:, 3]
    # Of sides so short that their product is 0 the IoU is 0 / 0, and that is a match to
    # pycocotools, but not to hotcoco. A box without sides meets nothing.
    boxes[areas == 0, 2:] = 0
    return _Columns(
        image_id=np.array([images[row["image_id"]] for row in kept], np.int64),
        category_id=np.array([classes[row["category_id"]] for row in kept], np.int64),
        bbox=boxes,
        area=np.array([row.get("area", area) for row, area in zip(kept, areas)], np.float64),
        iscrowd=np.array([bool(row.get("iscrowd")) for row in kept], np.int64),
        score=scores,
    )


def _pycocotools(objects: _Columns, found: _Columns, images: int, classes: int) -> COCOeval:
    def index(columns: _Columns) -> COCO:
        coco = COCO()
        # Numbered from 1: pycocotools takes id 0 for "no match".
        coco.dataset["annotations"] = [
            {"id": id, **dict(zip(_Columns._fields, values))}
            for id, values in enumerate(zip(*(column.tolist() for column in columns)), start=1)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco

    evaluator = COCOeval(iouType="bbox")
    evaluator.cocoGt = index(objects)
    # As `loadRes` does it, but that fails on an empty list. The area is the box's in any case.
    evaluator.cocoDt = index(found._replace(area=found.bbox[:, 2] * found.bbox[:, 3]))
    evaluator.params.imgIds = list(range(1, images + 1))
    evaluator.params.catIds = list(range(1, classes + 1))
    return evaluator


def _hotcoco(objects: _Columns, found: _Columns, images: int, classes: int) -> Any:
    import hotcoco  # here, as it may be absent

    truth = hotcoco.COCO.from_arrays(
        [{"id": id} for id in range(1, images + 1)],
        [{"id": id, "name": str(id)} for id in range(1, classes + 1)],
        objects.image_id,
        objects.category_id,
        objects.bbox,
        area=objects.area,
        iscrowd=objects.iscrowd,
    )
    rows = np.column_stack([found.image_id, found.bbox, found.score, found.category_id])
    return hotcoco.COCOeval(truth, truth.load_res(rows), "bbox")


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
