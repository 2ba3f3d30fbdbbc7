"""Dynamic soft label assignment of NanoDet-Plus: predictions decide which priors learn a box.

After SimOTA (Ge et al., 2021) with a soft class cost, as the original runs it.
Letters: P priors, G ground-truth slots, C classes, K the most priors that a box may take.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from nanodet_jax import boxes
from nanodet_jax.losses import functional
from nanodet_jax.structures import BACKGROUND, IGNORED, GroundTruth, Targets

LOG_FLOOR = 1e-7  # added to an overlap before its logarithm is taken


def assignment_cost(
    class_logits: jax.Array, overlaps: jax.Array, labels: jax.Array, iou_factor: float
) -> jax.Array:
    """How badly each prior suits each box, [G, P].

    That is the quality focal loss which the prior's classes would have if it learned the box,
    plus `iou_factor` times the negative logarithm of their overlap. Boxes differ in one class
    alone, so the sum over classes is taken once per prior and corrected at that class: no array
    of [P, G, C] is needed.

    Args:
      class_logits: [P, C].
      overlaps: [G, P].
      labels: [G].
      iou_factor: weight of the second term.
    """
    as_background = functional.quality_focal(class_logits, jnp.zeros_like(class_logits))
    at_label = class_logits.T[labels]  # [G, P]
    correction = functional.quality_focal(at_label, overlaps) - as_background.T[labels]
    distance = -jnp.log(overlaps + LOG_FLOOR)
    # Boxes that a prior does not overlap cost it the same, to the last bit: which of them comes
    # first then decides, and rounding must not.
    of_box = jnp.where(
        overlaps > 0, correction + iou_factor * distance, -iou_factor * math.log(LOG_FLOOR)
    )
    return jnp.sum(as_background, axis=1)[None] + of_box


def candidates_of_own_box(inside: jax.Array, centers: jax.Array, gt_boxes: jax.Array) -> jax.Array:
    """Priors [G, P] inside each box, or the nearest prior to its centre where there is none."""
    gt_centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    distances = jnp.sum(jnp.square(gt_centers[:, None] - centers[None]), axis=-1)
    nearest = jnp.argmin(distances, axis=1)  # of equals the finest level's, which comes first
    is_nearest = jnp.arange(inside.shape[1])[None] == nearest[:, None]
    has_none = ~jnp.any(inside, axis=1) & (boxes.area(gt_boxes) > 0)
    return inside | (has_none[:, None] & is_nearest)


def assign(
    priors: boxes.Priors,
    ground_truth: GroundTruth,
    class_logits: jax.Array,
    predicted: jax.Array,
    *,
    topk: int,
    iou_factor: float,
    ignore_threshold: float,
    priors_of_any_box: bool,
) -> Targets:
    """Targets of one image.

    A box takes the k candidates that cost it least; k is the sum of its `topk` largest overlaps
    with predictions, rounded down, at least 1. A prior that several boxes take goes to the box
    that costs it least, whether or not that box took it, so a box may be left with none.

    Args:
      priors: P centres.
      ground_truth: G slots in input pixels.
      class_logits: [P, C] of the branch that decides, at least float32.
      predicted: [P, 4] boxes of that branch, input pixels.
      topk: most priors for a box.
      iou_factor: weight of the overlap in the cost.
      ignore_threshold: a prior with more than this share of its predicted box in an ignore region
        is ignored unless it is positive all the same; 0 switches ignore regions off.
      priors_of_any_box: candidates are the priors inside any box, for every box: the original's
        behaviour. Else those inside the box itself, or the nearest if there is none.

    Returns:
      gt_index [P], and overlap [P] of the predicted box with the one it learns.
    """
    centers = jnp.asarray(priors.centers)
    gt_boxes = ground_truth.boxes.astype(predicted.dtype)
    sides = boxes.boxes_to_distances(centers[None], gt_boxes[:, None])
    inside = (jnp.min(sides, axis=-1) > 0) & ground_truth.valid[:, None]  # [G, P]
    if priors_of_any_box:
        candidate = jnp.any(inside, axis=0)[None] & ground_truth.valid[:, None]
    else:
        own = candidates_of_own_box(inside, centers, gt_boxes)
        candidate = own & ground_truth.valid[:, None]

    overlaps = boxes.iou(predicted[None], gt_boxes[:, None])  # [G, P]
    cost = assignment_cost(class_logits, overlaps, ground_truth.labels, iou_factor)
    cost = jnp.where(candidate, cost, jnp.inf)

    topk = min(topk, len(centers))
    largest, _ = jax.lax.top_k(jnp.where(candidate, overlaps, 0), topk)
    count = jnp.maximum(jnp.sum(largest, axis=1).astype(jnp.int32), 1)
    negative_cost, cheapest = jax.lax.top_k(-cost, topk)
    taken = (jnp.arange(topk)[None] < count[:, None]) & jnp.isfinite(negative_cost)
    rows = np.arange(len(gt_boxes))[:, None]
    takes = jnp.zeros(cost.shape, bool).at[rows, cheapest].set(taken)

    takers = jnp.sum(takes, axis=0)
    slot = jnp.where(takers > 1, jnp.argmin(cost, axis=0), jnp.argmax(takes, axis=0))
    positive = takers > 0
    overlap = jnp.take_along_axis(overlaps, slot[None], axis=0)[0]
    ignored = jnp.zeros(len(centers), bool)
    if ignore_threshold > 0:
        share = boxes.iof(predicted[None], gt_boxes[:, None])
        share = jnp.where(ground_truth.ignore[:, None], share, 0)
        ignored = jnp.max(share, axis=0) > ignore_threshold
    otherwise = jnp.where(ignored, IGNORED, BACKGROUND)
    return Targets(
        gt_index=jnp.where(positive, slot, otherwise).astype(jnp.int32),
        overlap=jnp.where(positive, overlap, -1.0),
    )
