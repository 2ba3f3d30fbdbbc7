"""ATSS: adaptive training sample selection (Zhang et al., 2020), as the original runs it.

Letters: P priors, G ground-truth slots, L levels, K candidates per level.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nanodet_jax import boxes
from nanodet_jax.structures import BACKGROUND, IGNORED, GroundTruth, Targets

EXCLUDED = 1e8  # distance that keeps a prior in an ignore region out of the candidates


def nearest_per_level(
    distances: jax.Array, level_sizes: tuple[int, ...], topk: int
) -> tuple[jax.Array, jax.Array]:
    """Indices and distances [G, L*K] of the `topk` nearest priors of each level (or all it has).

    `distances` is [G, P]; equal distances go to the lower index.
    """
    indices, values, start = [], [], 0
    for size in level_sizes:
        level = distances[:, start : start + size]
        negative, index = jax.lax.top_k(-level, min(topk, size))
        indices.append(index + start)
        values.append(-negative)
        start += size
    return jnp.concatenate(indices, axis=1), jnp.concatenate(values, axis=1)


def assign(
    priors: boxes.Priors,
    ground_truth: GroundTruth,
    *,
    topk: int,
    cell_scale: float,
    ignore_threshold: float,
) -> Targets:
    """Targets of one image.

    A box takes, among the `topk` priors of each level whose centres are nearest to its own,
    those whose cell (a square of `cell_scale` strides) overlaps it by at least the mean plus the
    standard deviation of the candidates' ious, and whose centre lies inside it by over 0.01
    pixel. A prior that several boxes take goes to the one with the highest iou.

    Args:
      priors: P centres with an offset of half a stride.
      ground_truth: G slots in input pixels.
      topk: candidates per box and level.
      cell_scale: side of a prior's cell, in strides.
      ignore_threshold: a prior with more than this share of its cell in an ignore region is
        ignored unless it is positive all the same; 0 switches ignore regions off.

    Returns:
      gt_index [P] and overlap [P], the cell's iou with the box it learns.
    """
    cell = jnp.asarray(boxes.cells(priors, cell_scale))
    centers = jnp.asarray(priors.centers)
    gt_boxes = ground_truth.boxes.astype(jnp.float32)
    overlaps = boxes.iou(gt_boxes[:, None], cell[None])  # [G, P]
    gt_centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    distances = jnp.sqrt(jnp.sum(jnp.square(gt_centers[:, None] - centers[None]), axis=-1))

    ignored = jnp.zeros(len(centers), bool)
    if ignore_threshold > 0:
        share = boxes.iof(cell[:, None], gt_boxes[None])  # [P, G]
        ignored = jnp.max(jnp.where(ground_truth.ignore, share, 0), axis=1) > ignore_threshold
        # Where a level has fewer than topk other priors, ignored ones are candidates still: the
        # original's behaviour.
        distances = jnp.where(ignored, EXCLUDED, distances)

    candidates, _ = nearest_per_level(distances, priors.level_sizes, topk)  # [G, L*K]
    candidate_overlaps = jnp.take_along_axis(overlaps, candidates, axis=1)
    threshold = jnp.mean(candidate_overlaps, axis=1) + jnp.std(candidate_overlaps, axis=1, ddof=1)
    sides = boxes.boxes_to_distances(centers[candidates], gt_boxes[:, None])
    positive = (candidate_overlaps >= threshold[:, None]) & (jnp.min(sides, axis=-1) > 0.01)
    positive &= ground_truth.valid[:, None]

    rows = np.arange(gt_boxes.shape[0])[:, None]
    claimed = (
        jnp.full(overlaps.shape, -1.0)
        .at[rows, candidates]
        .max(jnp.where(positive, candidate_overlaps, -1.0))
    )
    best = jnp.max(claimed, axis=0)
    taken = best >= 0
    otherwise = jnp.where(ignored, IGNORED, BACKGROUND)
    gt_index = jnp.where(taken, jnp.argmax(claimed, axis=0), otherwise).astype(jnp.int32)
    return Targets(gt_index=gt_index, overlap=jnp.where(taken, best, -1.0))
