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
    """

    giou_epsilon: ClassVar[float] = 1e-7

    def usable(self, ground_truth: GroundTruth, priors: boxes.Priors) -> Bool[Array, "P"]:
        """Return whether each prior's cell begins within the padded size of the image."""
        if ground_truth.padded_size is None:
            return jnp.ones(len(priors.centers), bool)
        # A prior lies in the upper left corner of its cell.
        return jnp.all(jnp.asarray(priors.centers) < ground_truth.padded_size[::-1], axis=-1)

    def box_divisor(self, weight: Float[Array, ""]) -> Float[Array, ""]:
        """Return the sum of weights, or 1 if it is smaller."""
        return jnp.maximum(weight, 1.0)
