"""Dynamic soft label assignment of NanoDet-Plus: predictions decide which priors learn a box.

SimOTA from Zheng Ge et al., "YOLOX: Exceeding YOLO Series in 2021",
https://arxiv.org/abs/2107.08430, section 2.1, with a soft class cost, as implemented in the
original:
https://github.com/RangiLyu/nanodet/blob/main/nanodet/model/head/assigner/dsl_assigner.py.

Dimensions: B batch, P priors, G ground-truth slots, C classes.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nanodet_jax import boxes
from nanodet_jax.losses import functional
from nanodet_jax.losses.assigners.assigner import Assigner
from nanodet_jax.runtime.precision import at_least_float32
from nanodet_jax.structures import BACKGROUND, IGNORED, GroundTruth, Predictions, Targets

LOG_FLOOR = 1e-7  # added to an iou before its logarithm is taken


def assignment_cost(
    class_logits: Float[Array, "P C"],
    ious: Float[Array, "G P"],
    labels: Int[Array, "G"],
    iou_factor: float,
) -> Float[Array, "G P"]:
    """Compute the cost of assigning each prior to each box.

    The cost is the quality focal loss that the class logits of the prior would have with the box as
    target, plus `iou_factor` times the negative logarithm of the iou. The target of a box is
    nonzero for one class only. So the sum over classes is computed once per prior, for the
    background, and corrected for that class. No array of shape [P, G, C] is needed.

    Args:
      class_logits: logits of the branch that determines the assignment.
      ious: ious of that branch's predicted boxes with the ground truth.
      labels: classes of the ground truth.
      iou_factor: weight of the second term.
    """
    as_background = functional.quality_focal(class_logits, jnp.zeros_like(class_logits))
    at_label = class_logits.T[labels]  # [G, P]
    correction = functional.quality_focal(at_label, ious) - as_background.T[labels]
    box_cost = -jnp.log(ious + LOG_FLOOR)
    # All boxes that have an iou of 0 with a prior must have exactly the same cost for it, because
    # their order then breaks the tie. Their correction is 0 except for rounding, so it is left out.
    of_box = jnp.where(
        ious > 0, correction + iou_factor * box_cost, -iou_factor * math.log(LOG_FLOOR)
    )
    return jnp.sum(as_background, axis=1)[None] + of_box


def candidates_in_box(
    inside: Bool[Array, "G P"], centers: Float[Array, "P 2"], gt_boxes: Float[Array, "G 4"]
) -> Bool[Array, "G P"]:
    """Return the priors inside each box, or the prior nearest to its center if it contains none."""
    gt_centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    distances = jnp.sum(jnp.square(gt_centers[:, None] - centers[None]), axis=-1)
    nearest = jnp.argmin(distances, axis=1)  # of equal distances, the first, on the finest level
    is_nearest = jnp.arange(inside.shape[1])[None] == nearest[:, None]
    has_none = ~jnp.any(inside, axis=1) & (boxes.area(gt_boxes) > 0)
    return inside | (has_none[:, None] & is_nearest)


@dataclass(frozen=True)
class DynamicSoftLabel(Assigner):
    """SimOTA with a soft class cost.

    A box takes the k candidates with the lowest cost. k is the sum of the `topk` largest ious of
    the box with its candidates' predicted boxes, rounded down, and at least 1. A prior that several
    boxes take is assigned to the box with the lowest cost, even if that box did not take it. So a
    box may end up without priors.

    The losses follow the original implementation of NanoDet-Plus. Boxes are measured in pixels. The
    quality of all branches is the iou that was used for the assignment. A batch counts as at least
    one sample. The box losses are divided by at least 1.

    Attributes:
      topk: maximum number of priors that a box takes.
      iou_factor: weight of the iou in the cost.
      ignore_threshold: a prior with more than this fraction of its predicted box in an ignore
        region is ignored unless it is positive; 0 disables ignore regions.
      priors_of_any_box: if True, the candidates of every box are the priors inside any box, as in
        the original. If False, they are the priors inside the box itself, or the nearest prior if
        there are none.
    """

    topk: int
    iou_factor: float
    ignore_threshold: float
    priors_of_any_box: bool

    def assign(
        self, predictions: Predictions, ground_truth: GroundTruth, priors: boxes.Priors
    ) -> Targets:
        """Assign the priors of one image.

        `overlap` is the iou of a prior's predicted box and its assigned box.
        """
        guide = jax.lax.stop_gradient(predictions)
        class_logits = at_least_float32(guide.class_logits)
        predicted_boxes = boxes.decode_boxes(at_least_float32(guide.box_logits), priors)
        return self.assign_decoded(class_logits, predicted_boxes, ground_truth, priors)

    def assign_decoded(
        self,
        class_logits: Float[Array, "P C"],
        predicted_boxes: Float[Array, "P 4"],
        ground_truth: GroundTruth,
        priors: boxes.Priors,
    ) -> Targets:
        """Do the same as `assign`, given predicted boxes in input pixels instead of box logits."""
        # 1. Candidates: priors inside the boxes.
        centers = jnp.asarray(priors.centers)  # [P, 2]
        gt_boxes = ground_truth.boxes.astype(predicted_boxes.dtype)  # [G, 4]
        sides = boxes.boxes_to_distances(centers[None], gt_boxes[:, None])  # [G, P, 4]
        inside = (jnp.min(sides, axis=-1) > 0) & ground_truth.valid[:, None]  # [G, P]
        if self.priors_of_any_box:
            candidate = jnp.any(inside, axis=0)[None] & ground_truth.valid[:, None]
        else:
            own = candidates_in_box(inside, centers, gt_boxes)
            candidate = own & ground_truth.valid[:, None]

        # 2. Cost of every pair of box and prior: class cost plus iou_factor times box cost.
        ious = boxes.iou(predicted_boxes[None], gt_boxes[:, None])  # [G, P]
        cost = assignment_cost(class_logits, ious, ground_truth.labels, self.iou_factor)
        cost = jnp.where(candidate, cost, jnp.inf)

        # 3. Dynamic k: the better the predictions of a box, the more priors it takes.
        topk = min(self.topk, len(centers))
        largest, _ = jax.lax.top_k(jnp.where(candidate, ious, 0), topk)  # [G, topk]
        k = jnp.maximum(jnp.sum(largest, axis=1).astype(jnp.int32), 1)  # [G]

        # 4. Each box takes its k cheapest candidates, or all candidates if there are fewer.
        negative_cost, cheapest = jax.lax.top_k(-cost, topk)  # [G, topk]
        taken = (jnp.arange(topk)[None] < k[:, None]) & jnp.isfinite(negative_cost)
        rows = np.arange(len(gt_boxes))[:, None]
        takes = jnp.zeros(cost.shape, bool).at[rows, cheapest].set(taken)  # [G, P]

        # 5. A prior that several boxes take is assigned to the cheapest of all boxes.
        num_boxes = jnp.sum(takes, axis=0)  # [P], boxes that take the prior
        slot = jnp.where(num_boxes > 1, jnp.argmin(cost, axis=0), jnp.argmax(takes, axis=0))
        positive = num_boxes > 0
        overlap = jnp.take_along_axis(ious, slot[None], axis=0)[0]

        # 6. Every other prior is background, or ignored.
        ignored = jnp.zeros(len(centers), bool)
        if self.ignore_threshold > 0:
            covered = boxes.iof(predicted_boxes[None], gt_boxes[:, None])  # [G, P]
            covered = jnp.where(ground_truth.ignore[:, None], covered, 0)
            ignored = jnp.max(covered, axis=0) > self.ignore_threshold
        otherwise = jnp.where(ignored, IGNORED, BACKGROUND)
        return Targets(
            gt_index=jnp.where(positive, slot, otherwise).astype(jnp.int32),
            overlap=jnp.where(positive, overlap, -1.0),
        )

    def box_unit(self, strides: Float[Array, "P 1"]) -> Float[Array, "P 1"]:
        """Return 1 for each prior, because boxes are in pixels."""
        return jnp.ones_like(strides)

    def quality(
        self,
        targets: Targets,
        predicted_boxes: Float[Array, "P 4"],
        target_boxes: Float[Array, "P 4"],
    ) -> Float[Array, "P"]:
        """Return the iou that was used for the assignment, the same for all branches."""
        return targets.overlap

    def count_samples(self, positives: Float[Array, "B"]) -> Float[Array, ""]:
        """Count the positive priors."""
        return jnp.sum(positives)

    def box_divisor(self, weight: Float[Array, ""]) -> Float[Array, ""]:
        """Return the sum of weights, but at least 1."""
        return jnp.maximum(weight, 1.0)
