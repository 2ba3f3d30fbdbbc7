"""Named tuples passed between parts of the program.

Dimensions: B batch, G ground-truth slots, P priors, C classes, R = reg_max + 1, N detections; `*n`
is any number of leading axes. Boxes are xyxy in pixels of the network input unless a field says
otherwise.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Float32, Int32, UInt8

Array = Any  # numpy on the host, jax on the device


class GroundTruth(NamedTuple):
    """Boxes of an image in G slots; a slot that is neither `valid` nor `ignore` is padding."""

    boxes: Float32[Array, "*n G 4"]
    labels: Int32[Array, "*n G"]  # 0 .. C-1; 0 where not valid
    valid: Bool[Array, "*n G"]  # an object to learn
    ignore: Bool[Array, "*n G"]  # a region that is neither object nor background
    # For GFL: height and width of the resized image, rounded up to multiples of 32. Priors beyond
    # them do not learn. None: all priors may learn.
    padded_size: Int32[Array, "*n 2"] | None = None
    image_size: Int32[Array, "*n 2"] | None = None  # the same without rounding up


class Batch(NamedTuple):
    """Input of one training step."""

    images: Float32[Array, "B H W 3"]  # BGR, normalized
    ground_truth: GroundTruth  # B images


class RawBatch(NamedTuple):
    """Input of device augmentation: decoded pixels and the parameters of their transforms.

    `canvases` contains either the images, each in the upper left corner of its canvas, or the
    indices of images that are stored on the device.
    """

    canvases: UInt8[Array, "B Hc Wc 3"] | Int32[Array, "B"]  # BGR
    sizes: Int32[Array, "B 2"]  # height and width of the image on its canvas
    shrunk: Int32[Array, "B 2"]  # size after downscaling by averaging, or `sizes` if none is needed
    inverse_warps: Float32[Array, "B 3 3"]  # from input pixel indices to shrunk image indices
    filled: Int32[Array, "B 2"]  # height and width of the part of the input that the image fills
    colors: Float32[Array, "B 3"]  # brightness, contrast, saturation
    ground_truth: GroundTruth  # B images


class Predictions(NamedTuple):
    """Outputs of the network for each prior, before any activation."""

    class_logits: Float[Array, "*n P C"]
    # For each side (left, top, right, bottom), a distribution over distances in strides.
    box_logits: Float[Array, "*n P 4 R"]


BACKGROUND, IGNORED = -1, -2  # special values of Targets.gt_index


class Targets(NamedTuple):
    """Assignment of priors to boxes."""

    gt_index: Int32[Array, "*n P"]  # slot of the box to learn, BACKGROUND or IGNORED
    # IoU of that box with the prior's anchor (ATSS) or predicted box (dynamic soft labels); -1
    # where there is no box.
    overlap: Float32[Array, "*n P"]


class Detections(NamedTuple):
    """At most N boxes, best first; slots that are not `valid` hold zeros."""

    boxes: Float32[Array, "*n N 4"]
    scores: Float32[Array, "*n N"]  # in [0, 1]
    labels: Int32[Array, "*n N"]
    valid: Bool[Array, "*n N"]
    truncated: Bool[Array, "*n"]  # whether the candidate limit may have removed a detection
