"""Elementwise losses of NanoDet. Weights and divisors are in `criterion.py`.

The focal losses are from Xiang Li et al., "Generalized Focal Loss: Learning Qualified and
Distributed Bounding Boxes for Dense Object Detection", https://arxiv.org/abs/2006.04388.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nanodet_jax import boxes


def quality_focal(logits: Float[Array, "*#n"], quality: Float[Array, "*#n"]) -> Float[Array, "*#n"]:
    """Compute the quality focal loss: equation 5 of the paper with beta = 2.

    This is the cross entropy against a soft label, times the squared distance to that label.

    Args:
      logits: logits of one class.
      quality: soft label in [0, 1]: the iou of the box for the class of its object, and 0 for
        other classes.
    """
    distance = quality - jax.nn.sigmoid(logits)
    return optax.losses.sigmoid_binary_cross_entropy(logits, quality) * jnp.square(distance)


def distribution_focal(
    logits: Float[Array, "*n R"], target: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Compute the distribution focal loss: equation 6 of the paper.

    This is the cross entropy against the two integers next to a distance, with linear
    interpolation weights.

    Args:
      logits: logits of a distribution over the distances 0 .. R-1.
      target: distance in [0, R-1].
    """
    bins = jax.lax.broadcasted_iota(target.dtype, logits.shape, logits.ndim - 1)
    weights = jnp.maximum(1 - jnp.abs(bins - target[..., None]), 0)  # linear interpolation
    return -jnp.sum(weights * jax.nn.log_softmax(logits), axis=-1)


def giou_loss(
    predicted: Float[Array, "*#n 4"],
    target: Float[Array, "*#n 4"],
    epsilon: float = boxes.EPSILON,
) -> Float[Array, "*#n"]:
    """Compute one minus the generalized iou of boxes, which are xyxy in the same unit.

    Unions and enclosing areas smaller than `epsilon` count as `epsilon`.
    """
    return 1 - boxes.giou(predicted, target, epsilon)
