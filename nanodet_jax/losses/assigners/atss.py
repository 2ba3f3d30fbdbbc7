"""ATSS, the assigner of NanoDet: the statistics of a box's candidates determine its priors.

Shifeng Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
Training Sample Selection", https://arxiv.org/abs/1912.02424. Line numbers refer to algorithm 1.

Dimensions: B batch, P priors, G ground-truth slots, K candidates of a box, on all levels together.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from nanodet_jax import boxes
from nanodet_jax.losses.assigners.assigner import Assigner
from nanodet_jax.structures import BACKGROUND, IGNORED, GroundTruth, Predictions, Targets

EXCLUDED = 1e8  # distance that keeps a prior in an ignore region out of the candidates


def nearest_per_level(
    distances: Float[Array, "G P"], level_sizes: tuple[int, ...], topk: int
) -> tuple[Int32[Array, "G K"], Float[Array, "G K"]]:
    """Return indices and distances of the `topk` priors of each level that are nearest to each box.

    A level with fewer priors contributes all of them. Of priors at equal distances, the one with
    the lower index comes first.

    Args:
      distances: from the center of each box to the priors of all levels.
      level_sizes: number of priors of each level; their sum is P.
      topk: number of priors per level.
    """
    indices, values, start = [], [], 0
    for size in level_sizes:
        level = distances[:, start : start + size]
        negative, index = jax.lax.top_k(-level, min(topk, size))
        indices.append(index + start)
        values.append(-negative)
        start += size
    return jnp.concatenate(indices, axis=1), jnp.concatenate(values, axis=1)


@dataclass(frozen=True)
class ATSS(Assigner):
    """Adaptive training sample selection, as in the original NanoDet.

    The candidates of a box are the `topk` priors of each level whose centers are nearest to the
    center of the box. The box takes a candidate if the iou of the candidate's anchor and the
    box is at least the mean plus the standard deviation of all candidates' ious, and if the
    candidate's center lies more than 0.01 pixel inside the box. A prior that several boxes take is
    assigned to the box with the highest iou. Predictions are not used.

    The losses follow the original implementation of NanoDet. Boxes are measured in strides. The
    quality is the iou of the branch's own predicted box with the target box. Every image counts as
    at least one sample. The box losses are divided by the sum of their weights, however small.

    Attributes:
      topk: candidates per box and level.
      anchor_scale: side of a prior's anchor, a square around its center, in strides.
      ignore_threshold: a prior with more than this fraction of its anchor in an ignore region is
        ignored unless it is positive; 0 disables ignore regions.
    """

    topk: int
    anchor_scale: float
    ignore_threshold: float

    def usable(self, ground_truth: GroundTruth, priors: boxes.Priors) -> Bool[Array, "P"] | None:
        """Return whether each prior of an image may be a candidate, or None if all may.

        The other priors are ignored: they are neither positive nor background.
        """
        return None

    def assign(
        self, predictions: Predictions, ground_truth: GroundTruth, priors: boxes.Priors
    ) -> Targets:
        """Assign the priors of one image. `overlap` is the iou of a prior's anchor and its box."""
        anchors = jnp.asarray(boxes.anchors(priors, self.anchor_scale))  # [P, 4]
        centers = jnp.asarray(priors.centers)  # [P, 2]
        gt_boxes = ground_truth.boxes.astype(jnp.float32)  # [G, 4]
        ious = boxes.iou(gt_boxes[:, None], anchors[None])  # [G, P]
        gt_centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
        distances = jnp.sqrt(jnp.sum(jnp.square(gt_centers[:, None] - centers[None]), axis=-1))

        ignored = jnp.zeros(len(centers), bool)
        if self.ignore_threshold > 0:
            covered = boxes.iof(anchors[:, None], gt_boxes[None])  # [P, G]
            covered = jnp.where(ground_truth.ignore, covered, 0)
            ignored = jnp.max(covered, axis=1) > self.ignore_threshold
            # On a level with fewer than topk other priors, ignored priors are still candidates, as
            # in the original.
            distances = jnp.where(ignored, EXCLUDED, distances)

        usable = self.usable(ground_truth, priors)
        if usable is not None:
            distances = jnp.where(usable, distances, jnp.inf)
            ignored |= ~usable

        # Lines 3 to 6: the candidates are the topk priors of each level nearest to the box.
        candidates, nearest = nearest_per_level(distances, priors.level_sizes, self.topk)  # [G, K]
        # Lines 7 to 10: the threshold is the mean plus the standard deviation of their ious.
        candidate_ious = jnp.take_along_axis(ious, candidates, axis=1)
        counted = None if usable is None else jnp.isfinite(nearest)
        threshold = jnp.mean(candidate_ious, axis=1, where=counted) + jnp.std(
            candidate_ious, axis=1, ddof=1, where=counted
        )
        # Lines 11 to 15: a candidate that reaches the threshold is positive if it lies in the box.
        sides = boxes.boxes_to_distances(centers[candidates], gt_boxes[:, None])  # [G, K, 4]
        positive = (candidate_ious >= threshold[:, None]) & (jnp.min(sides, axis=-1) > 0.01)
        positive &= ground_truth.valid[:, None]
        if counted is not None:
            positive &= counted

        # A prior that is positive for several boxes learns the box with the highest iou
        # (section 4.1). Ties go to the first box.
        rows = np.arange(gt_boxes.shape[0])[:, None]
        positive_ious = (
            jnp.full(ious.shape, -1.0)
            .at[rows, candidates]
            .max(jnp.where(positive, candidate_ious, -1.0))
        )
        best = jnp.max(positive_ious, axis=0)  # [P]
        taken = best >= 0
        # Line 17: every other prior is background, or ignored.
        otherwise = jnp.where(ignored, IGNORED, BACKGROUND)
        gt_index = jnp.where(taken, jnp.argmax(positive_ious, axis=0), otherwise).astype(jnp.int32)
        return Targets(gt_index=gt_index, overlap=jnp.where(taken, best, -1.0))

    def box_unit(self, strides: Float[Array, "P 1"]) -> Float[Array, "P 1"]:
        """Return the stride of each prior."""
        return strides

    def quality(
        self,
        targets: Targets,
        predicted_boxes: Float[Array, "P 4"],
        target_boxes: Float[Array, "P 4"],
    ) -> Float[Array, "P"]:
        """Return the iou of the branch's own predicted box with the target box."""
        return jax.lax.stop_gradient(boxes.iou(predicted_boxes, target_boxes))

    def count_samples(self, positives: Float[Array, "B"]) -> Float[Array, ""]:
        """Return the number of positive priors, counting 1 for each image that has none."""
        return jnp.sum(jnp.maximum(positives, 1.0))

    def box_divisor(self, weight: Float[Array, ""]) -> Float[Array, ""]:
        """Return the sum of weights, or 1 if it is 0."""
        return jnp.where(weight > 0, weight, 1.0)
