"""Clipping of boxes that reach beyond their image, as in the original."""

Box = tuple[float, float, float, float]


def clip_box(box: Box, width: float, height: float) -> Box:
    """Clip a box (x, y, width, height) to an image of the given size.

    As in the original's converter, a corner left of or above the image moves to the border
    and the box keeps its size. Width and height are limited to the size of the image.
    """
    x, y, w, h = box
    return max(x, 0.0), max(y, 0.0), min(w, width), min(h, height)
