"""ATSS as mmdetection's GFL runs it.

Reproduces mmdet/models/task_modules/assigners/atss_assigner.py and
mmdet/models/dense_heads/gfl_head.py of https://github.com/open-mmlab/mmdetection (3.3.0).

Dimensions: P priors, G ground-truth slots, K candidates of a box.
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
    """Adaptive training sample selection among the priors of an image's own size.

    It differs from `ATSS` in three points. Priors beyond the padded size of an image are neither
    positive nor background, and are no candidates. The box losses are divided by at least 1. The
    giou loss has a smaller epsilon.

    Attributes:
      allowed_border: pixels by which an anchor may extend beyond the image, or else its prior is
        not used. Below 0, any anchor may.
    """

    allowed_border: int = -1

    giou_epsilon: ClassVar[float] = 1e-7

    def usable(self, ground_truth: GroundTruth, priors: boxes.Priors) -> Bool[Array, "P"]:
        """Return whether each prior's cell begins within the padded size of the image."""
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
        """Return the sum of weights, or 1 if it is smaller."""
        return jnp.maximum(weight, 1.0)
