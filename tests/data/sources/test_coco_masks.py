"""Boxes and areas of polygons and masks, and segmentations that are rejected."""

import numpy as np
import pytest
from pycocotools import mask as masks

from nanodet_jax.data.sources.coco_masks import box_and_area


def test_box_and_area_of_polygons_enclose_all_of_them():
    square, triangle = [1, 2, 4.5, 2, 4.5, 6, 1, 6], [10, 0, 12, 0, 10, 3]
    assert box_and_area([square]) == ([1, 2, 3.5, 4], 14)
    assert box_and_area([square, triangle]) == ([1, 0, 11, 6], 17)


@pytest.mark.parametrize("seed", range(8))
def test_box_and_area_of_a_mask_are_those_of_its_pixels(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 300, 2)
    pixels = np.zeros((height, width), np.uint8, order="F")
    pixels[3:17, 2:19] = rng.random((14, 17)) < 0.6
    rows, columns = np.nonzero(pixels)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    size = [int(height), int(width)]
    compressed = masks.encode(pixels)["counts"].decode()
    changes = np.flatnonzero(np.diff(pixels.ravel(order="F"), prepend=0, append=2))
    for counts in (compressed, np.diff(changes, prepend=0).tolist()):
        assert box_and_area({"size": size, "counts": counts}) == (box, pixels.sum())


SIZE = [10, 12]
INVALID = {
    "text": ("x", "neither a list of polygons nor a mask"),
    "nothing": ([], "segmentation is empty"),
    "two points": ([[1, 2, 3, 4]], "at least three points"),
    "odd": ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
    "a flat list": ([1, 2, 3, 4, 5, 6], "at least three points"),
    "nan": ([[1, 2, 3, 4, 5, float("nan")]], "invalid numbers"),
    "huge": ([[1, 2, 3, 4, 5, 1e300]], "invalid numbers"),
    "true": ([[1, 2, 3, 4, 5, True]], "invalid numbers"),
    "no size": ({"counts": "0"}, "size of the segmentation is not"),
    "size 0": ({"size": [0, 5], "counts": "0"}, "size of the segmentation is not"),
    "huge size": ({"size": [1 << 20, 5], "counts": "0"}, "size of the segmentation is not"),
    "negative run": ({"size": SIZE, "counts": [130, -10]}, "invalid run lengths"),
    "short runs": ({"size": SIZE, "counts": [60, 59]}, "do not add up to its size"),
    "empty mask": ({"size": SIZE, "counts": [120]}, "segmentation is empty"),
    "no counts": ({"size": SIZE}, "neither run lengths nor compressed text"),
    "open number": ({"size": SIZE, "counts": "0o"}, "neither run lengths nor compressed text"),
    "long number": ({"size": SIZE, "counts": "ooooooo0"}, "neither run lengths nor compressed"),
    "other text": ({"size": SIZE, "counts": "0\x00"}, "neither run lengths nor compressed text"),
    "wrong size": ({"size": SIZE, "counts": "PPPPPPO0"}, "do not fit its size"),
}


@pytest.mark.parametrize("case", INVALID)
def test_segmentation_that_is_invalid_is_an_error(case):
    segmentation, message = INVALID[case]
    with pytest.raises(ValueError, match=message):
        box_and_area(segmentation)
