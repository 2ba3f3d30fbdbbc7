"""What crosses from one room to another: arrays with names, nothing that computes.

Letters: B batch, G ground-truth slots, P priors, C classes, R reg_max + 1, N detections.
Boxes are float32 xyxy: pixels of the network input, except where a field says otherwise.
"""

from typing import Any, NamedTuple

Array = Any  # numpy on the host, jax on the device


class GroundTruth(NamedTuple):
    """Boxes of an image in G slots; a slot that is neither `valid` nor `ignore` is padding."""

    boxes: Array  # [..., G, 4] float32 xyxy
    labels: Array  # [..., G] int32, 0 .. C-1; 0 where not valid
    valid: Array  # [..., G] bool: an object to be learned
    ignore: Array  # [..., G] bool: a region that is neither object nor background


class Batch(NamedTuple):
    """What one training step eats."""

    images: Array  # [B, H, W, 3] float32, BGR, normalised
    ground_truth: GroundTruth  # B images


class RawBatch(NamedTuple):
    """What becomes a `Batch` on the device: pixels as decoded, and the numbers to warp them by."""

    canvases: Array  # [B, Hc, Wc, 3] uint8 BGR, images in upper left corners; or [B] int32: places
    sizes: Array  # [B, 2] int32: height and width of the image on its canvas
    shrunk: Array  # [B, 2] int32: the size that it is averaged down to first; its own if it is not
    inverse_warps: Array  # [B, 3, 3] float32: pixel indices of the input to those of the shrunk
    filled: Array  # [B, 2] int32: height and width of the input that it fills; the rest is padding
    colors: Array  # [B, 3] float32: brightness, contrast, saturation
    ground_truth: GroundTruth  # B images


class Predictions(NamedTuple):
    """What the network says about each prior, before any activation."""

    class_logits: Array  # [..., P, C]
    box_logits: Array  # [..., P, 4, R]: left, top, right, bottom, a distribution over distances


BACKGROUND, IGNORED = -1, -2  # of Targets.gt_index


class Targets(NamedTuple):
    """What an assigner decides for each prior."""

    gt_index: Array  # [..., P] int32: slot of the box to learn; -1 background, -2 ignored
    # float32: iou of the box with the prior's cell (ATSS) or prediction (dynamic soft label); -1
    # where there is no box.
    overlap: Array  # [..., P]


class Detections(NamedTuple):
    """At most N boxes, best first; slots that are not `valid` hold zeros."""

    boxes: Array  # [..., N, 4] float32 xyxy
    scores: Array  # [..., N] float32 in [0, 1]
    labels: Array  # [..., N] int32
    valid: Array  # [..., N] bool
    truncated: Array  # [...] bool: the cap before suppression may have cost a detection
