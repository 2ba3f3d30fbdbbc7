"""Predictions to detections: decode, fixed-size suppression, back to the image's own pixels.

Letters: P priors, C classes, K candidates, N detections.
"""

import jax
import jax.numpy as jnp

from nanodet_jax import boxes
from nanodet_jax.losses.criterion import predicted_boxes
from nanodet_jax.structures import Detections, Predictions

# The original's, for both of its heads.
SCORE_THRESHOLD = 0.05
IOU_THRESHOLD = 0.6
MAX_DETECTIONS = 100
# Pairs of prior and class that suppression looks at. `Detections.truncated` tells when it could
# have mattered: over this many pairs, and fewer than MAX_DETECTIONS boxes left of them.
CAP = 4096


def decode(
    predictions: Predictions, priors: boxes.Priors, input_size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Boxes [..., P, 4] in input pixels, clipped to (height, width), and scores [..., P, C]."""
    decoded = predicted_boxes(predictions.box_logits, priors)
    scores = jax.nn.sigmoid(predictions.class_logits.astype(jnp.float32))
    return boxes.clip_boxes(decoded, *input_size), scores


def non_maximum_suppression(
    candidate_boxes: jax.Array,
    scores: jax.Array,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
    max_detections: int = MAX_DETECTIONS,
    cap: int = CAP,
) -> Detections:
    """Greedy suppression within each class, for one image; a prior may yield several classes.

    Equal scores go to the lower prior, then the lower class. Only max_detections boxes are ever
    picked, so that many rounds over the candidates give exactly what the full K x K algorithm
    gives, in memory of K.

    Args:
      candidate_boxes: [P, 4] xyxy.
      scores: [P, C].
      score_threshold: pairs must score more than this.
      iou_threshold: a box that overlaps a better one of its class by more is dropped.
      max_detections: N.
      cap: K, how many of the best pairs are looked at.

    Returns:
      Detections of N slots, best first.
    """
    num_priors, num_classes = scores.shape
    flat = jnp.where(scores > score_threshold, scores, 0.0).reshape(-1)
    above = jnp.sum(flat > 0)
    best, index = jax.lax.top_k(flat, min(cap, num_priors * num_classes))
    labels = (index % num_classes).astype(jnp.int32)
    candidates = candidate_boxes[index // num_classes]
    # The original parts the classes by moving each to a place of its own. In float32 that rounds
    # boxes to some 1e-3 pixel, which decides overlaps next to the threshold; so do as it does.
    furthest = jnp.max(jnp.where(best[:, None] > 0, candidates, 0.0))
    apart = candidates + (labels.astype(candidates.dtype) * (furthest + 1))[:, None]

    def pick(remaining: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        chosen = jnp.argmax(remaining)
        overlap = boxes.iou(apart[chosen][None], apart)
        beaten = (overlap > iou_threshold) & (labels == labels[chosen])
        left = jnp.where(beaten, 0.0, remaining).at[chosen].set(0.0)
        return left, (chosen, remaining[chosen])

    _, (chosen, chosen_scores) = jax.lax.scan(pick, best, None, length=max_detections)
    valid = chosen_scores > 0
    return Detections(
        boxes=jnp.where(valid[:, None], candidates[chosen], 0.0),
        scores=chosen_scores,
        labels=jnp.where(valid, labels[chosen], 0),
        valid=valid,
        truncated=(above > best.shape[0]) & ~valid[-1],
    )


def to_image(detections: Detections, inverse_warp: jax.Array, size: jax.Array) -> Detections:
    """Detections of one image, from input pixels to those of the image file.

    Args:
      detections: of one image, input pixels.
      inverse_warp: [3, 3], input pixels to image pixels.
      size: [2], height and width of the image, to which boxes are clipped.
    """
    x1, y1, x2, y2 = jnp.moveaxis(detections.boxes, -1, 0)
    corners = jnp.stack(
        [jnp.stack([x1, x2, x1, x2], -1), jnp.stack([y1, y2, y2, y1], -1)], axis=-1
    )  # [N, 4, 2]
    ones = jnp.ones((*corners.shape[:-1], 1), corners.dtype)
    homogeneous = jnp.einsum(
        "ij,nkj->nki", inverse_warp, jnp.concatenate([corners, ones], -1), precision="highest"
    )
    points = homogeneous[..., :2] / homogeneous[..., 2:]
    moved = jnp.concatenate([points.min(axis=1), points.max(axis=1)], axis=-1)
    moved = boxes.clip_boxes(moved, size[0], size[1])
    return detections._replace(boxes=jnp.where(detections.valid[:, None], moved, 0.0))
