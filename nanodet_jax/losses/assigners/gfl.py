"""ATSS as used by GFL in mmdetection.

This module reproduces mmdet/models/task_modules/assigners/atss_assigner.py and the assignment in
mmdet/models/dense_heads/gfl_head.py of https://github.com/open-mmlab/mmdetection (3.3.0).

Dimensions: P priors.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nanodet_jax import boxes
from nanodet_jax.losses.assigners.atss import ATSS
from nanodet_jax.structures import GroundTruth


@dataclass(frozen=True)
class GFLAssigner(ATSS):
    """Adaptive training sample selection among the priors within the padded size of an image.

    It differs from `ATSS` in three points. Priors beyond the padded size of an image are not
    candidates, and are ignored: they are neither positive nor background. The box losses are
    divided by at least 1. The giou loss has a smaller epsilon.

    Attributes:
      allowed_border: number of pixels by which an anchor may extend beyond the image. The priors of
        other anchors are ignored too. If negative, there is no limit.
    """

    allowed_border: int = -1

    giou_epsilon: ClassVar[float] = 1e-7

    def usable(self, ground_truth: GroundTruth, priors: boxes.Priors) -> Bool[Array, "P"]:
        """Return whether each prior is within the padded size and has an allowed anchor."""
        usable = jnp.ones(len(priors.centers), bool)
        if ground_truth.padded_size is not None:
            usable &= boxes.inside(priors, ground_truth.padded_size)
        if self.allowed_border >= 0 and ground_truth.image_size is not None:
            anchors = jnp.asarray(boxes.anchors(priors, self.anchor_scale))
            size = jnp.asarray(ground_truth.image_size, jnp.float32)
            limit = (size[::-1] + self.allowed_border)[None]
            inside = (anchors[:, :2] >= -self.allowed_border) & (anchors[:, 2:] < limit)
            usable &= jnp.all(inside, axis=-1)
        return usable

    def box_divisor(self, weight: Float[Array, ""]) -> Float[Array, ""]:
        """Return the sum of weights, or 1 if the sum is less than 1."""
        return jnp.maximum(weight, 1.0)
