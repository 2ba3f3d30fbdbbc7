"""The three losses of generalised focal loss (Li et al., 2020), element by element, float32.

Weights and normalisation stand in `criterion.py`.
"""

import jax
import jax.numpy as jnp
import optax

from nanodet_jax import boxes


def quality_focal(logits: jax.Array, quality: jax.Array) -> jax.Array:
    """Cross entropy against a soft target, times the squared distance to it (equation 5, beta 2).

    Args:
      logits: any shape.
      quality: same shape, in [0, 1]: the box's iou at its class, 0 elsewhere.

    Returns:
      Loss of the same shape.
    """
    distance = quality - jax.nn.sigmoid(logits)
    return optax.losses.sigmoid_binary_cross_entropy(logits, quality) * jnp.square(distance)


def distribution_focal(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Cross entropy with the two integers that enclose a distance (equation 6).

    Args:
      logits: [..., R], a distribution over the distances 0 .. R-1.
      target: [...], in [0, R-1].

    Returns:
      Loss [...].
    """
    bins = jax.lax.broadcasted_iota(target.dtype, logits.shape, logits.ndim - 1)
    weights = jnp.maximum(1 - jnp.abs(bins - target[..., None]), 0)  # linear between neighbours
    return -jnp.sum(weights * jax.nn.log_softmax(logits), axis=-1)


def giou_loss(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """One minus the generalised iou [...] of boxes [..., 4], xyxy in one unit."""
    return 1 - boxes.giou(predicted, target)
