"""Clip and report boxes that extend beyond their image."""

from collections.abc import Iterable, Iterator

import numpy as np

from nanodet_jax.data.faults import Fault, FaultKind
from nanodet_jax.data.records import Record, location_of

OVERHANG = 1.0  # pixels beyond the image that rounding and 1-based indices may cause

Box = tuple[float, float, float, float]


def clip_box(box: Box, width: float, height: float) -> Box:
    """Clip a box (x, y, width, height) to an image of the given size.

    As in the original's converter, a corner left of or above the image is moved to the border
    without shrinking the box, and each side of the box is limited to the side of the image.
    """
    x, y, w, h = box
    return max(x, 0.0), max(y, 0.0), min(w, width), min(h, height)


def boxes_outside(record: Record) -> Iterator[Fault]:
    """Yield a tolerated fault for each box that extends more than a pixel beyond its image.

    The size of the image must be known.
    """
    low, high = -OVERHANG, np.array([record.width, record.height]) + OVERHANG
    out = np.any((record.boxes[:, :2] < low) | (record.boxes[:, 2:] > high), axis=1)
    for box in record.boxes[out]:
        found = f"box {format_box(box)} extends beyond the {record.width}x{record.height} image"
        yield Fault(FaultKind.OUTSIDE, f"{location_of(record)}: {found}", tolerated=True)


def format_box(box: Iterable[float]) -> str:
    """Return a box as text for messages."""
    return f"[{', '.join(f'{float(value):g}' for value in box)}]"
