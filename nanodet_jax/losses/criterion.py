"""Criterion: assignment and loss of a batch, built once from the config.

Dimensions: B batch, P priors, G ground-truth slots, C classes, R = reg_max + 1; `*n` is any number
of leading axes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nanodet_jax import boxes, config
from nanodet_jax.losses import functional
from nanodet_jax.losses.assigners.assigner import Assigner
from nanodet_jax.losses.assigners.atss import ATSS
from nanodet_jax.losses.assigners.dynamic_soft_label import DynamicSoftLabel
from nanodet_jax.losses.assigners.gfl import GFLAssigner
from nanodet_jax.runtime.precision import at_least_float32
from nanodet_jax.structures import IGNORED, GroundTruth, Predictions, Targets

PREFIXES = ("", "aux_")  # of the names of the head's and the guidance's metrics, as in the original


class Sums(NamedTuple):
    """Sums of a branch over the priors of an image, or of a whole batch."""

    quality_focal: Float[Array, "*n"]
    giou: Float[Array, "*n"]  # weighted by the confidence of each prior, like distribution_focal
    distribution_focal: Float[Array, "*n"]
    box_weight: Float[Array, "*n"]  # sum of these confidences
    positives: Float[Array, "*n"]  # number of positive priors


class Divisors(NamedTuple):
    """Divisors of the losses of a batch. The divisors of the parts of a batch add up to them."""

    samples: Float[Array, ""]  # of the quality focal loss
    box_weights: tuple[Float[Array, ""], ...]  # of the box losses of each branch


@dataclass(frozen=True, eq=False)
class Criterion:
    """Loss of predictions against ground truth.

    All branches (the head and, if there is one, the guidance) learn from one assignment, and the
    loss is the sum of their losses. The quality focal loss is divided by the number of positive
    priors, and the box losses are divided by the sum of their weights, both over the whole batch.
    The assigner defines lower bounds for these divisors. If there are no boxes, the loss is just
    the quality focal loss. In this case the original NanoDet returns a constant.

    Attributes:
      priors: priors of the input size.
      assigner: assigns boxes to priors, and defines how the losses use the assignment.
      weights: weights of the three losses.
    """

    priors: boxes.Priors
    assigner: Assigner
    weights: config.Loss

    def __call__(
        self,
        branches: tuple[Predictions, ...],
        ground_truth: GroundTruth,
        *,
        divisors: Divisors | None = None,
        axis_name: str | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Compute the loss of a batch and its parts, in float32.

        Args:
          branches: class logits [B, P, C] and box logits [B, P, 4, R] of each branch.
          ground_truth: boxes [B, G, 4] in input pixels, labels [B, G], valid [B, G], ignore [B, G].
          divisors: divisors of the whole batch, if these images are only a part of it. The losses
            and gradients of the parts then add up to those of the whole batch.
          axis_name: mapped axis over which the batch is split, if `divisors` are not given. The
            divisors are then summed over this axis, with the same effect.

        Returns:
          The loss and the metrics: `loss`; `loss_qfl`, `loss_bbox` and `loss_dfl` of the head; the
          same three of the guidance with the prefix `aux_`; and `positives`.
        """
        sums, own_divisors = self._batch_sums(branches, ground_truth)
        if divisors is None:
            divisors = own_divisors if axis_name is None else jax.lax.psum(own_divisors, axis_name)
        samples = jnp.maximum(divisors.samples, 1.0)
        loss, parts = jnp.zeros((), jnp.float32), dict[str, jax.Array]()
        for prefix, branch, box_weight in zip(PREFIXES, sums, divisors.box_weights):
            box_divisor = self.assigner.box_divisor(box_weight)
            losses = {
                "loss_qfl": self.weights.quality_focal * branch.quality_focal / samples,
                "loss_bbox": self.weights.giou * branch.giou / box_divisor,
                "loss_dfl": (
                    self.weights.distribution_focal * branch.distribution_focal / box_divisor
                ),
            }
            loss = loss + losses["loss_qfl"] + losses["loss_bbox"] + losses["loss_dfl"]
            parts |= {prefix + name: value for name, value in losses.items()}
        return loss, {"loss": loss, **parts, "positives": sums[0].positives}

    def divisors(self, branches: tuple[Predictions, ...], ground_truth: GroundTruth) -> Divisors:
        """Compute the divisors of a batch or a part of it. The arguments are as for `__call__`."""
        return self._batch_sums(branches, ground_truth)[1]

    def assign(self, branches: tuple[Predictions, ...], ground_truth: GroundTruth) -> Targets:
        """Assign the priors of one image.

        The assigner gets the predictions of the last branch.

        Args:
          branches: class logits [P, C] and box logits [P, 4, R] of each branch.
          ground_truth: boxes [G, 4] in input pixels, labels [G], valid [G], ignore [G].

        Returns:
          `gt_index` [P] and `overlap` [P].
        """
        return self.assigner.assign(branches[-1], ground_truth, self.priors)

    def _batch_sums(
        self, branches: tuple[Predictions, ...], ground_truth: GroundTruth
    ) -> tuple[list[Sums], Divisors]:
        """Compute the sums of each branch over B images, and the divisors."""
        targets = jax.vmap(self.assign)(branches, ground_truth)
        images = [
            jax.vmap(self._image_sums)(predictions, targets, ground_truth)
            for predictions in branches
        ]
        sums = [jax.tree.map(jnp.sum, of_images) for of_images in images]
        samples = self.assigner.count_samples(images[0].positives)
        return sums, Divisors(samples, tuple(branch.box_weight for branch in sums))

    def _image_sums(
        self, predictions: Predictions, targets: Targets, ground_truth: GroundTruth
    ) -> Sums:
        """Compute the sums of one branch over the priors of one image."""
        class_logits = at_least_float32(predictions.class_logits)  # [P, C]
        box_logits = at_least_float32(predictions.box_logits)  # [P, 4, R]
        positive = targets.gt_index >= 0  # [P]
        counted = targets.gt_index != IGNORED  # [P]
        slot = jnp.maximum(targets.gt_index, 0)  # [P]
        strides = jnp.asarray(self.priors.strides)[:, None]  # [P, 1]
        unit = self.assigner.box_unit(strides)  # [P, 1]
        centers = jnp.asarray(self.priors.centers) / unit  # [P, 2]
        target_boxes = ground_truth.boxes[slot] / unit  # [P, 4]
        distances = boxes.expected_distances(box_logits) * (strides / unit)  # [P, 4]
        predicted_boxes = boxes.distances_to_boxes(centers, distances)  # [P, 4]

        # The soft label is the quality of the prior's box for the class of its object, and 0 for
        # other classes.
        quality = self.assigner.quality(targets, predicted_boxes, target_boxes)  # [P]
        at_label = jax.nn.one_hot(ground_truth.labels[slot], class_logits.shape[-1])  # [P, C]
        soft_labels = at_label * jnp.where(positive, quality, 0.0)[:, None]
        quality_focal = jnp.sum(functional.quality_focal(class_logits, soft_labels), axis=-1)

        # The box losses of a prior are weighted by its confidence.
        confidence = jax.lax.stop_gradient(jax.nn.sigmoid(jnp.max(class_logits, axis=-1)))
        weight = jnp.where(positive, confidence, 0.0)  # [P]
        reg_max = box_logits.shape[-1] - 1
        target_distances = boxes.boxes_to_distances(centers, target_boxes) / (strides / unit)
        target_distances = jnp.clip(target_distances, 0, reg_max - 0.1)  # [P, 4], in strides
        distribution_focal = jnp.mean(
            functional.distribution_focal(box_logits, target_distances), axis=-1
        )
        giou = functional.giou_loss(predicted_boxes, target_boxes, self.assigner.giou_epsilon)
        return Sums(
            quality_focal=jnp.sum(jnp.where(counted, quality_focal, 0.0)),
            giou=jnp.sum(weight * giou),
            distribution_focal=jnp.sum(weight * distribution_focal),
            box_weight=jnp.sum(weight),
            positives=jnp.sum(positive).astype(jnp.float32),
        )


def build_criterion(settings: config.Config) -> Criterion:
    """Return the criterion that a config describes."""
    model = settings.model
    priors = boxes.make_priors(settings.input_size, model.strides, model.prior_offset)
    return Criterion(priors, build_assigner(settings.assigner, settings.compat), settings.loss)


def build_assigner(settings: config.Assigner, compat: config.Compat) -> Assigner:
    """Return the assigner of a config. Only this function depends on assigner names."""
    match settings.name:
        case "atss":
            return ATSS(
                topk=settings.topk,
                anchor_scale=settings.anchor_scale,
                ignore_threshold=settings.ignore_threshold,
            )
        case "gfl":
            return GFLAssigner(
                topk=settings.topk,
                anchor_scale=settings.anchor_scale,
                ignore_threshold=settings.ignore_threshold,
            )
        case "dynamic_soft_label":
            return DynamicSoftLabel(
                topk=settings.topk,
                iou_factor=settings.iou_factor,
                ignore_threshold=settings.ignore_threshold,
                priors_of_any_box=compat.priors_of_any_box,
            )
    raise ValueError(settings.name)  # never reached, because `config.check` raises first
