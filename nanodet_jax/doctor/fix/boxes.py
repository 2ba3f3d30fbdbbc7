"""Correct a box: order its corners, clip it to the image, and drop it if it is too small."""

from collections import Counter

from nanodet_jax.data.sources.clip import Box, clip_box

SWAPPED = "inverted boxes: corners swapped"
CLIPPED = "boxes outside their image: clipped"
TOO_SMALL = "boxes smaller than one pixel: dropped"
REPEATED = "duplicate boxes: dropped"
MISSING = "entries of missing images: dropped"
UNREADABLE = "unreadable images: left as they are"
RESIZED = "images with a wrong width or height: size corrected"
RENUMBERED = "repeated or invalid ids: renumbered"

Changes = Counter[str]  # how many times each of these changes was made


def correct_box(
    box: Box,
    size: tuple[float, float],
    changes: Changes,
    *,
    smallest: tuple[float, float],
    tolerance: float = 0.0,
    move: bool = True,
) -> Box | None:
    """Return a corrected box, xyxy, or None if it has to be dropped.

    Args:
      box: xyxy, in any unit.
      size: (width, height) of the image in the same unit; 0 if unknown.
      changes: counter of the changes, updated in place.
      smallest: (width, height) of the smallest box that is kept.
      tolerance: a box that extends beyond the image by no more than this is not clipped.
      move: before clipping, move a box that extends beyond the left or top of the image, as the VOC
        and YOLO sources do with `clip_box`.
    """
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        changes[SWAPPED] += 1
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    width, height = size
    if all(size) and max(-x1, -y1, x2 - width, y2 - height) > tolerance:
        changes[CLIPPED] += 1
        if move:
            x1, y1, w, h = clip_box((x1, y1, x2 - x1, y2 - y1), width, height)
            x2, y2 = x1 + w, y1 + h
        x1, x2 = (min(max(x, 0.0), width) for x in (x1, x2))
        y1, y2 = (min(max(y, 0.0), height) for y in (y1, y2))
    if x2 <= x1 or y2 <= y1 or x2 - x1 < smallest[0] or y2 - y1 < smallest[1]:
        changes[TOO_SMALL] += 1
        return None
    return x1, y1, x2, y2
