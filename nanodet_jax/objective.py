"""Predictions and ground truth in, one number and its parts out: where assignment meets loss.

Letters: B batch, P priors, C classes, R reg_max + 1.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nanodet_jax import boxes, config, losses
from nanodet_jax.assigners import atss
from nanodet_jax.precision import at_least_float32
from nanodet_jax.structures import GroundTruth, Predictions, Targets


def expected_distances(box_logits: jax.Array) -> jax.Array:
    """Mean distance [..., 4], in strides, of distributions [..., 4, R] over 0 .. R-1."""
    shares = jax.nn.softmax(at_least_float32(box_logits))
    return jnp.einsum("...r,r->...", shares, jnp.arange(shares.shape[-1], dtype=shares.dtype))


def image_terms(
    predictions: Predictions, targets: Targets, ground_truth: GroundTruth, priors: boxes.Priors
) -> dict[str, jax.Array]:
    """Sums over the priors of one image: the numerators of the losses and what divides them."""
    class_logits = at_least_float32(predictions.class_logits)
    box_logits = at_least_float32(predictions.box_logits)
    positive = targets.gt_index >= 0
    counted = targets.gt_index != atss.IGNORED
    slot = jnp.maximum(targets.gt_index, 0)
    # In strides, as the original: giou and its epsilon see numbers around 1.
    points = priors.centers / priors.strides[:, None]
    target_boxes = ground_truth.boxes[slot] / priors.strides[:, None]
    predicted = boxes.distances_to_boxes(points, expected_distances(box_logits))

    overlap = jax.lax.stop_gradient(boxes.iou(predicted, target_boxes))
    at_label = jax.nn.one_hot(ground_truth.labels[slot], class_logits.shape[-1])
    quality = at_label * jnp.where(positive, overlap, 0.0)[:, None]
    quality_focal = jnp.sum(losses.quality_focal(class_logits, quality), axis=-1)

    confidence = jax.lax.stop_gradient(jax.nn.sigmoid(jnp.max(class_logits, axis=-1)))
    weight = jnp.where(positive, confidence, 0.0)
    reg_max = box_logits.shape[-1] - 1
    distances = jnp.clip(boxes.boxes_to_distances(points, target_boxes), 0, reg_max - 0.1)
    distribution_focal = jnp.mean(losses.distribution_focal(box_logits, distances), axis=-1)
    return {
        "quality_focal": jnp.sum(jnp.where(counted, quality_focal, 0.0)),
        "giou": jnp.sum(weight * losses.giou_loss(predicted, target_boxes)),
        "distribution_focal": jnp.sum(weight * distribution_focal),
        "weight": jnp.sum(weight),
        "positives": jnp.sum(positive).astype(jnp.float32),
    }


def objective(
    predictions: Predictions,
    ground_truth: GroundTruth,
    priors: boxes.Priors,
    *,
    assigner: config.Assigner,
    weights: config.Loss,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of a batch of B images, in float32.

    The quality focal loss is divided by the number of positive priors (at least one counted per
    image), the box losses by the sum of their weights, both over the whole batch. Without any
    box the loss is the quality focal loss alone (the original returns a constant there).

    Args:
      predictions: B images.
      ground_truth: B images, G slots each, input pixels.
      priors: of the input size.
      assigner, weights: the config's.
      axis_name: mapped axis over which the batch is split. The divisors are then those of the
        whole batch, and the sum over devices of the loss and its gradients is the whole's.

    Returns:
      The loss, and its parts `loss_qfl`, `loss_bbox`, `loss_dfl` and `positives`.
    """
    assign = partial(
        atss.assign,
        priors,
        topk=assigner.topk,
        cell_scale=assigner.cell_scale,
        ignore_threshold=assigner.ignore_threshold,
    )
    targets = jax.vmap(assign)(ground_truth)
    terms = jax.vmap(partial(image_terms, priors=priors))(predictions, targets, ground_truth)
    total = {name: jnp.sum(per_image) for name, per_image in terms.items()}
    samples = jnp.sum(jnp.maximum(terms["positives"], 1.0))
    weight = total["weight"]
    if axis_name is not None:
        samples, weight = jax.lax.psum((samples, weight), axis_name)
    weight = jnp.where(weight > 0, weight, 1.0)
    parts = {
        "loss_qfl": weights.quality_focal * total["quality_focal"] / samples,
        "loss_bbox": weights.giou * total["giou"] / weight,
        "loss_dfl": weights.distribution_focal * total["distribution_focal"] / weight,
    }
    loss = parts["loss_qfl"] + parts["loss_bbox"] + parts["loss_dfl"]
    return loss, {"loss": loss, **parts, "positives": total["positives"]}
