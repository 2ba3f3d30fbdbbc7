"""Turn predictions into detections: decode, suppress, and map to the pixels of the image.

Dimensions: P priors, C classes, K candidates, N detections; `*n` is any number of leading axes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from nanodet_jax import boxes
from nanodet_jax.runtime.precision import at_least_float32
from nanodet_jax.structures import Detections, Predictions

# As in the original, for both heads.
SCORE_THRESHOLD = 0.05
IOU_THRESHOLD = 0.6
MAX_DETECTIONS = 100
# Only the best PRE_NMS_TOPK pairs of prior and class take part in suppression. If there are more
# pairs and fewer than MAX_DETECTIONS boxes are kept, detections may be missing:
# `Detections.truncated` reports this.
PRE_NMS_TOPK = 4096
GFL_PRE_NMS_TOPK = 1000  # best pairs of each level that take part, as in mmdetection


def detections_of(
    predictions: Predictions,
    priors: boxes.Priors,
    input_size: tuple[int, int],
    inverse_warp: Float[Array, "3 3"],
    size: Real[Array, "2"],
) -> Detections:
    """Return the detections of one image as in NanoDet: suppress, then map to the image.

    Args:
      predictions: class logits [P, C] and box logits [P, 4, R].
      priors: P priors.
      input_size: (height, width) of the network input, to which boxes are clipped first.
      inverse_warp: matrix from input pixels to image pixels.
      size: height and width of the image, to which boxes are clipped last.

    Returns:
      Detections in N slots, best first, with boxes in image pixels.
    """
    decoded, scores = decode(predictions, priors)
    decoded = boxes.clip_boxes(decoded, *input_size)
    return to_image(non_maximum_suppression(decoded, scores), inverse_warp, size)


def gfl_detections_of(
    predictions: Predictions,
    priors: boxes.Priors,
    inverse_warp: Float[Array, "3 3"],
    size: Real[Array, "2"],
    padded_size: Int[Array, "2"] | None = None,
) -> Detections:
    """Return the detections of one image as in GFL: map to the image, then suppress.

    The candidates are the best pairs of prior and class of each level.

    Args:
      predictions, priors, inverse_warp, size: as for `detections_of`.
      padded_size: (height, width) in input pixels. Priors beyond it are left out. None: keep all.

    Returns:
      As for `detections_of`.
    """
    decoded, scores = decode(predictions, priors)
    if padded_size is not None:
        inside = boxes.inside(priors, padded_size)
        scores = jnp.where(inside[:, None], scores, 0.0)
    return non_maximum_suppression(
        boxes_to_image(decoded, inverse_warp, size),
        scores,
        pre_nms_topk=GFL_PRE_NMS_TOPK,
        level_sizes=priors.level_sizes,
        drop_empty=True,
    )


def decode(
    predictions: Predictions, priors: boxes.Priors
) -> tuple[Float[Array, "*n P 4"], Float[Array, "*n P C"]]:
    """Return boxes xyxy in input pixels, not clipped, and scores in [0, 1]."""
    decoded = boxes.decode_boxes(at_least_float32(predictions.box_logits), priors)
    return decoded, jax.nn.sigmoid(predictions.class_logits.astype(jnp.float32))


def non_maximum_suppression(
    decoded_boxes: Float[Array, "P 4"],
    scores: Float[Array, "P C"],
    *,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
    max_detections: int = MAX_DETECTIONS,
    pre_nms_topk: int = PRE_NMS_TOPK,
    level_sizes: tuple[int, ...] | None = None,
    drop_empty: bool = False,
) -> Detections:
    """Suppress overlapping boxes within each class, greedily, for one image.

    A prior may yield detections of several classes. Among equal scores, the prior with the lower
    index ranks first, then the class with the lower index. At most N boxes are kept, so N rounds
    over the K candidates give exactly the result of the full K x K algorithm, with memory
    proportional to K.

    Args:
      decoded_boxes: xyxy in pixels.
      scores: in [0, 1].
      score_threshold: a pair of prior and class must score more than this.
      iou_threshold: a box is dropped if its iou with a better box of its class exceeds this.
      max_detections: N.
      pre_nms_topk: K; if there are fewer pairs, all are candidates.
      level_sizes: number of priors of each level. If given, the candidates are the `pre_nms_topk`
        best pairs of each level, as in mmdetection, and K is the number of all candidates.
      drop_empty: drop candidates whose width or height is not positive.

    Returns:
      Detections in N slots, best first.
    """
    # 1. The candidates: the K best pairs of prior and class above the score threshold.
    best, prior, labels, left_out = _candidates(
        jnp.where(scores > score_threshold, scores, 0.0),
        pre_nms_topk,
        level_sizes or scores.shape[:1],
    )
    candidates = decoded_boxes[prior]  # [K, 4]
    if drop_empty:
        sides = candidates[:, 2:] - candidates[:, :2]
        best = jnp.where(jnp.all(sides > 0, axis=-1), best, 0.0)

    # 2. The original separates the classes by moving the boxes of each class by its own offset. In
    # float32 this rounds boxes by about 1e-3 pixel, which can decide on which side of the threshold
    # an iou lies. So it is done here too.
    furthest = jnp.max(jnp.where(best[:, None] > 0, candidates, 0.0))
    shifted = candidates + (labels.astype(candidates.dtype) * (furthest + 1))[:, None]

    # 3. N rounds: pick the best remaining candidate and drop those of its class that overlap it.
    # A score of 0 marks candidates that were picked or dropped.
    def pick(
        remaining: Float[Array, "K"], _: None
    ) -> tuple[Float[Array, "K"], tuple[Int[Array, ""], Float[Array, ""]]]:
        chosen = jnp.argmax(remaining)
        overlap = boxes.iou(shifted[chosen][None], shifted)
        dropped = (overlap > iou_threshold) & (labels == labels[chosen])
        left = jnp.where(dropped, 0.0, remaining).at[chosen].set(0.0)
        return left, (chosen, remaining[chosen])

    _, (chosen, chosen_scores) = jax.lax.scan(pick, best, None, length=max_detections)  # [N]

    # 4. Once no candidate is left, the other rounds pick a score of 0, which marks an empty slot.
    valid = chosen_scores > 0
    return Detections(
        boxes=jnp.where(valid[:, None], candidates[chosen], 0.0),
        scores=chosen_scores,
        labels=jnp.where(valid, labels[chosen], 0),
        valid=valid,
        truncated=(left_out > 0) & ~valid[-1],
    )


def _candidates(
    scores: Float[Array, "P C"], topk: int, level_sizes: tuple[int, ...]
) -> tuple[Float[Array, "K"], Int[Array, "K"], Int[Array, "K"], Int[Array, ""]]:
    """Return score, prior and label of the best pairs of each level, and how many are left out.

    Pairs with a score of 0 do not count as left out. They fill the arrays if a level has too few
    others.
    """
    num_classes = scores.shape[1]
    parts, start, left_out = [], 0, jnp.int32(0)
    for size in level_sizes:
        flat = scores[start : start + size].reshape(-1)  # [size * C]
        best, index = jax.lax.top_k(flat, min(topk, flat.size))
        parts.append((best, start + index // num_classes, (index % num_classes).astype(jnp.int32)))
        left_out += jnp.maximum(jnp.sum(flat > 0) - best.size, 0)
        start += size
    best, prior, labels = (jnp.concatenate(part) for part in zip(*parts))
    return best, prior, labels, left_out


def to_image(
    detections: Detections, inverse_warp: Float[Array, "3 3"], size: Real[Array, "2"]
) -> Detections:
    """Map the detections of one image from input pixels to image pixels.

    A warped box is replaced by the smallest upright box around its corners.

    Args:
      detections: N slots, input pixels.
      inverse_warp: matrix from input pixels to image pixels.
      size: height and width of the image, to which boxes are clipped.
    """
    moved = boxes_to_image(detections.boxes, inverse_warp, size)
    return detections._replace(boxes=jnp.where(detections.valid[:, None], moved, 0.0))


def boxes_to_image(
    input_boxes: Float[Array, "N 4"], inverse_warp: Float[Array, "3 3"], size: Real[Array, "2"]
) -> Float[Array, "N 4"]:
    """Map boxes xyxy from input pixels to image pixels, and clip them, as `to_image` does."""
    x1, y1, x2, y2 = jnp.moveaxis(input_boxes, -1, 0)
    corners = jnp.stack(
        [jnp.stack([x1, x2, x1, x2], -1), jnp.stack([y1, y2, y2, y1], -1)], axis=-1
    )  # [N, 4, 2]
    ones = jnp.ones((*corners.shape[:-1], 1), corners.dtype)
    homogeneous = jnp.einsum(
        "ij,nkj->nki", inverse_warp, jnp.concatenate([corners, ones], -1), precision="highest"
    )
    points = homogeneous[..., :2] / homogeneous[..., 2:]
    moved = jnp.concatenate([points.min(axis=1), points.max(axis=1)], axis=-1)
    return boxes.clip_boxes(moved, size[0], size[1])
