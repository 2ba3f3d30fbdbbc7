"""Predictions and ground truth in, one number and its parts out: where assignment meets loss.

Letters: B batch, P priors, C classes, R reg_max + 1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nanodet_jax import boxes, config
from nanodet_jax.losses import functional
from nanodet_jax.losses.assigners import atss, dynamic_soft_label
from nanodet_jax.runtime.precision import at_least_float32
from nanodet_jax.structures import IGNORED, GroundTruth, Predictions, Targets

PREFIXES = ("", "aux_")  # of the metrics of each branch; the guidance's as the original calls them


def expected_distances(box_logits: jax.Array) -> jax.Array:
    """Mean distance [..., 4], in strides, of distributions [..., 4, R] over 0 .. R-1."""
    shares = jax.nn.softmax(at_least_float32(box_logits))
    bins = jnp.arange(shares.shape[-1], dtype=shares.dtype)
    return jnp.einsum("...r,r->...", shares, bins, precision="highest")


def predicted_boxes(box_logits: jax.Array, priors: boxes.Priors) -> jax.Array:
    """Boxes [..., P, 4] in input pixels, not clipped, from box logits [..., P, 4, R]."""
    distances = expected_distances(box_logits)
    strides = jnp.broadcast_to(priors.strides[:, None], distances.shape)
    centers = jnp.broadcast_to(priors.centers, (*distances.shape[:-1], 2))
    return boxes.distances_to_boxes(centers, distances * strides)


def assign(
    branches: tuple[Predictions, ...],
    ground_truth: GroundTruth,
    priors: boxes.Priors,
    assigner: config.Assigner,
    compat: config.Compat,
) -> Targets:
    """Targets of one image. Where predictions take part, they are those of the last branch."""
    if assigner.name == "atss":
        return atss.assign(
            priors,
            ground_truth,
            topk=assigner.topk,
            cell_scale=assigner.anchor_scale,
            ignore_threshold=assigner.ignore_threshold,
        )
    guide = jax.lax.stop_gradient(branches[-1])
    return dynamic_soft_label.assign(
        priors,
        ground_truth,
        at_least_float32(guide.class_logits),
        predicted_boxes(guide.box_logits, priors),
        topk=assigner.topk,
        iou_factor=assigner.iou_factor,
        ignore_threshold=assigner.ignore_threshold,
        priors_of_any_box=compat.priors_of_any_box,
    )


def image_terms(
    predictions: Predictions,
    targets: Targets,
    ground_truth: GroundTruth,
    priors: boxes.Priors,
    soft_labels: bool,
) -> dict[str, jax.Array]:
    """Sums over the priors of one image: the numerators of the losses and what divides them.

    The quality that a class is to predict is the overlap in `targets` with soft_labels, one for
    all branches; without, that of the branch's own box.
    """
    class_logits = at_least_float32(predictions.class_logits)
    box_logits = at_least_float32(predictions.box_logits)
    positive = targets.gt_index >= 0
    counted = targets.gt_index != IGNORED
    slot = jnp.maximum(targets.gt_index, 0)
    # As the original: NanoDet measures boxes in strides, NanoDet-Plus in pixels. The epsilon of
    # an overlap is all that can tell.
    strides = jnp.asarray(priors.strides)[:, None]
    unit = jnp.ones_like(strides) if soft_labels else strides
    points, target_boxes = jnp.asarray(priors.centers) / unit, ground_truth.boxes[slot] / unit
    predicted = boxes.distances_to_boxes(points, expected_distances(box_logits) * (strides / unit))

    overlap = targets.overlap
    if not soft_labels:
        overlap = jax.lax.stop_gradient(boxes.iou(predicted, target_boxes))
    at_label = jax.nn.one_hot(ground_truth.labels[slot], class_logits.shape[-1])
    quality = at_label * jnp.where(positive, overlap, 0.0)[:, None]
    quality_focal = jnp.sum(functional.quality_focal(class_logits, quality), axis=-1)

    confidence = jax.lax.stop_gradient(jax.nn.sigmoid(jnp.max(class_logits, axis=-1)))
    weight = jnp.where(positive, confidence, 0.0)
    reg_max = box_logits.shape[-1] - 1
    distances = boxes.boxes_to_distances(points, target_boxes) / (strides / unit)
    distances = jnp.clip(distances, 0, reg_max - 0.1)
    distribution_focal = jnp.mean(functional.distribution_focal(box_logits, distances), axis=-1)
    return {
        "quality_focal": jnp.sum(jnp.where(counted, quality_focal, 0.0)),
        "giou": jnp.sum(weight * functional.giou_loss(predicted, target_boxes)),
        "distribution_focal": jnp.sum(weight * distribution_focal),
        "weight": jnp.sum(weight),
        "positives": jnp.sum(positive).astype(jnp.float32),
    }


class Divisors(NamedTuple):
    """What the losses of a batch are divided by, as sums over its images: those of parts add up."""

    samples: jax.Array  # [] float32: of the quality focal loss
    weights: tuple[jax.Array, ...]  # [] float32: of the box losses of each branch


def batch_terms(
    branches: tuple[Predictions, ...],
    ground_truth: GroundTruth,
    priors: boxes.Priors,
    *,
    assigner: config.Assigner,
    compat: config.Compat,
) -> tuple[list[dict[str, jax.Array]], Divisors]:
    """Sums over B images, of each branch: `image_terms`; and what is to divide them."""
    targets = jax.vmap(partial(assign, priors=priors, assigner=assigner, compat=compat))(
        branches, ground_truth
    )
    soft_labels = assigner.name == "dynamic_soft_label"
    score = jax.vmap(partial(image_terms, priors=priors, soft_labels=soft_labels))
    per_image = [score(predictions, targets, ground_truth) for predictions in branches]
    sums = [{name: jnp.sum(values) for name, values in terms.items()} for terms in per_image]
    positives = per_image[0]["positives"]
    samples = jnp.sum(positives if soft_labels else jnp.maximum(positives, 1.0))
    return sums, Divisors(samples, tuple(terms["weight"] for terms in sums))


def objective(
    branches: tuple[Predictions, ...],
    ground_truth: GroundTruth,
    priors: boxes.Priors,
    *,
    assigner: config.Assigner,
    compat: config.Compat,
    weights: config.Loss,
    divisors: Divisors | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of a batch of B images, in float32: the sum over the branches, all with one assignment.

    The quality focal loss is divided by the number of positive priors, the box losses by the sum
    of their weights, both over the whole batch. As in the original, NanoDet (ATSS) counts at least
    one positive prior per image, NanoDet-Plus (dynamic soft labels) one per batch; there the sum
    of weights is at least 1 too. Without any box the loss is the quality focal loss alone (the
    original's NanoDet returns a constant there).

    Args:
      branches: predictions for B images, of the head and, if there is one, of the guidance.
      ground_truth: B images, G slots each, input pixels.
      priors: of the input size.
      assigner, compat, weights: the config's.
      divisors: of the whole, where these images are a part of a larger batch; the sum over the
        parts of the loss and its gradients is then the whole's.
      axis_name: mapped axis over which the batch is split, where `divisors` are not given. They
        are then summed over it, with the same effect.

    Returns:
      The loss, and its parts: `loss_qfl`, `loss_bbox` and `loss_dfl` of the head, the same with
      `aux_` of the guidance, and `positives`.
    """
    sums, own = batch_terms(branches, ground_truth, priors, assigner=assigner, compat=compat)
    if divisors is None:
        divisors = own if axis_name is None else jax.lax.psum(own, axis_name)
    soft_labels = assigner.name == "dynamic_soft_label"
    samples = jnp.maximum(divisors.samples, 1.0)
    loss, parts = jnp.zeros((), jnp.float32), dict[str, jax.Array]()
    for prefix, terms, weight in zip(PREFIXES, sums, divisors.weights):
        weight = jnp.maximum(weight, 1.0) if soft_labels else jnp.where(weight > 0, weight, 1.0)
        of_branch = {
            "loss_qfl": weights.quality_focal * terms["quality_focal"] / samples,
            "loss_bbox": weights.giou * terms["giou"] / weight,
            "loss_dfl": weights.distribution_focal * terms["distribution_focal"] / weight,
        }
        loss = loss + of_branch["loss_qfl"] + of_branch["loss_bbox"] + of_branch["loss_dfl"]
        parts |= {prefix + name: value for name, value in of_branch.items()}
    return loss, {"loss": loss, **parts, "positives": sums[0]["positives"]}
