"""Boxes and areas of COCO segmentations, for annotations without a `bbox`.

Segmentations come from untrusted files. pycocotools reads compressed masks in C without checking
them, so they are checked here first.
"""

import math
import re
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as masks

MAX_SIDE = 1 << 16  # largest side of a mask, in pixels
# Run lengths of a compressed mask: up to 6 characters that continue a number, and one that ends it.
COMPRESSED = re.compile(r"([P-o]{0,6}[0-O])+")


def box_and_area(segmentation: Any) -> tuple[list[float], float]:
    """Return the box (x, y, width, height) and the area of a segmentation, in pixels.

    Args:
      segmentation: a list of polygons [x1, y1, x2, y2, ...], or a mask as run lengths: a dict with
        `size` [height, width] and `counts`, a list of numbers or pycocotools' compressed text.

    Raises:
      ValueError: if the segmentation is invalid or empty.
    """
    if isinstance(segmentation, list):
        return _of_polygons(segmentation)
    if isinstance(segmentation, dict):
        return _of_mask(segmentation)
    raise ValueError("segmentation is neither a list of polygons nor a mask")


def _of_polygons(polygons: list[Any]) -> tuple[list[float], float]:
    """Return the box and the area of polygons. The area where two of them overlap counts twice."""
    points = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon of the segmentation needs at least three points x, y")
        if not all(type(value) in (int, float) and abs(value) < 1e6 for value in polygon):
            raise ValueError("a polygon of the segmentation has invalid numbers")
        points.append(np.array(polygon, np.float64).reshape(-1, 2))
    if not points:
        raise ValueError("segmentation is empty")
    low = np.min([polygon.min(axis=0) for polygon in points], axis=0)
    high = np.max([polygon.max(axis=0) for polygon in points], axis=0)
    area = sum(cv2.contourArea(polygon.astype(np.float32)) for polygon in points)
    return [*low.tolist(), *(high - low).tolist()], float(area)


def _of_mask(mask: dict[Any, Any]) -> tuple[list[float], float]:
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(map(_is_side, size)):
        raise ValueError("size of the segmentation is not [height, width]")
    if isinstance(counts, list):
        if not all(type(count) is int and 0 <= count <= math.prod(size) for count in counts):
            raise ValueError("counts of the segmentation contain invalid run lengths")
        if sum(counts) != math.prod(size):
            raise ValueError("counts of the segmentation do not add up to its size")
        encoded = masks.frPyObjects(mask, *size)
    elif isinstance(counts, str) and COMPRESSED.fullmatch(counts):
        encoded = {"size": size, "counts": counts.encode()}
    else:
        raise ValueError("counts of the segmentation are neither run lengths nor compressed text")
    box, area = masks.toBbox(encoded).tolist(), float(masks.area(encoded))
    inside = box[0] + box[2] <= size[1] and box[1] + box[3] <= size[0]
    if not inside or area > math.prod(size):  # run lengths that do not fit the size
        raise ValueError("counts of the segmentation do not fit its size")
    if area == 0:
        raise ValueError("segmentation is empty")
    return box, area


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_SIDE
