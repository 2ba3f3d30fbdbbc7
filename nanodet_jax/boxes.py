"""Geometry of boxes, priors and distance distributions.

Boxes are float32 xyxy arrays with any leading axes. A function of two boxes expects both in the
same unit. Dimensions: P priors, R = reg_max + 1 bins of a distance distribution.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

EPSILON = 1e-6  # lower bound for areas that are divisors, as in the original


class Priors(NamedTuple):
    """Points, each of which predicts a box: finest level first, and row by row in each level."""

    centers: Float32[np.ndarray, "P 2"]  # x and y in input pixels
    strides: Float32[np.ndarray, "P"]  # pixels
    level_sizes: tuple[int, ...]  # priors per level; their sum is P


def make_priors(input_size: tuple[int, int], strides: tuple[int, ...], offset: float) -> Priors:
    """Return the priors for an input of (height, width) pixels.

    `offset` is the position of a prior in its grid cell, in strides: 0.5 for NanoDet, and 0 for
    NanoDet-Plus and GFL, as the published weights of each expect.
    """
    height, width = input_size
    centers, per_prior = [], []
    for stride in strides:
        x = (np.arange(-(-width // stride), dtype=np.float32) + np.float32(offset)) * stride
        y = (np.arange(-(-height // stride), dtype=np.float32) + np.float32(offset)) * stride
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        centers.append(grid.astype(np.float32))
        per_prior.append(np.full(len(grid), stride, np.float32))
    sizes = tuple(len(level) for level in centers)
    return Priors(np.concatenate(centers), np.concatenate(per_prior), sizes)


def inside(priors: Priors, size: Int[Array, "2"]) -> Bool[Array, "P"]:
    """Return whether each prior is within `size`: (height, width) in input pixels.

    For priors with an offset of 0, this is whether their cells begin within `size`.
    """
    limit = jnp.asarray(size, jnp.float32)[None, ::-1]
    return jnp.all(jnp.asarray(priors.centers) < limit, axis=-1)


def anchors(priors: Priors, scale: float) -> Float32[np.ndarray, "P 4"]:
    """Return squares with sides of `scale` strides, centered on the priors, in input pixels."""
    half = 0.5 * (priors.strides * np.float32(scale))[:, None]
    return np.concatenate([priors.centers - half, priors.centers + half], axis=-1)


def expected_distances(box_logits: Float[Array, "*n 4 R"]) -> Float[Array, "*n 4"]:
    """Return the mean distance, in strides, of each distribution over the distances 0 .. R-1."""
    probabilities = jax.nn.softmax(box_logits)
    bins = jnp.arange(probabilities.shape[-1], dtype=probabilities.dtype)
    return jnp.einsum("...r,r->...", probabilities, bins, precision="highest")


def decode_boxes(box_logits: Float[Array, "*n P 4 R"], priors: Priors) -> Float[Array, "*n P 4"]:
    """Return the predicted boxes in input pixels, not clipped to the input."""
    distances = expected_distances(box_logits)
    strides = jnp.broadcast_to(priors.strides[:, None], distances.shape)
    centers = jnp.broadcast_to(priors.centers, (*distances.shape[:-1], 2))
    return distances_to_boxes(centers, distances * strides)


def distances_to_boxes(
    points: Float[Array, "*n 2"], distances: Float[Array, "*n 4"]
) -> Float[Array, "*n 4"]:
    """Return boxes from points and their distances to the left, top, right and bottom sides."""
    low, high = points - distances[..., :2], points + distances[..., 2:]
    return jnp.concatenate([low, high], axis=-1)


def boxes_to_distances(
    points: Float[Array, "*#n 2"], boxes: Float[Array, "*#n 4"]
) -> Float[Array, "*#n 4"]:
    """Return the distances from points to the sides of boxes.

    The distance to a side is negative if the point lies beyond that side.
    """
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def clip_boxes(
    boxes: Float[Array, "*n 4"], height: Array | int, width: Array | int
) -> Float[Array, "*n 4"]:
    """Move every corner into [0, width] x [0, height]."""
    bound = jnp.asarray([width, height, width, height], boxes.dtype)
    return jnp.clip(boxes, 0, jnp.broadcast_to(bound, boxes.shape))


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Return width times height, which is negative if exactly one of the two is negative."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> Float[Array, "*#n"]:
    """Return the area that two boxes share; `a` and `b` broadcast."""
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:])
    size = jnp.maximum(high - low, 0)
    return size[..., 0] * size[..., 1]


def iou(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> Float[Array, "*#n"]:
    """Return intersection over union; `a` and `b` broadcast.

    `iou(a[:, None], b[None])` contains the ious of all pairs.
    """
    common = intersection(a, b)
    return common / jnp.maximum(area(a) + area(b) - common, EPSILON)


def iof(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> Float[Array, "*#n"]:
    """Return intersection over the area of `a`, the foreground; `a` and `b` broadcast."""
    return intersection(a, b) / jnp.maximum(area(a), EPSILON)


def giou(
    a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"], epsilon: float = EPSILON
) -> Float[Array, "*#n"]:
    """Return the generalized iou, in [-1, 1]; `a` and `b` broadcast.

    This is the iou minus the fraction of the smallest enclosing box that neither box covers. See
    Rezatofighi et al., "Generalized Intersection over Union: A Metric and A Loss for Bounding Box
    Regression", https://arxiv.org/abs/1902.09630. `epsilon` is a lower bound for areas that are
    divisors.
    """
    common = intersection(a, b)
    union = jnp.maximum(area(a) + area(b) - common, epsilon)
    low = jnp.minimum(a[..., :2], b[..., :2])
    high = jnp.maximum(a[..., 2:], b[..., 2:])
    size = jnp.maximum(high - low, 0)
    enclosing = jnp.maximum(size[..., 0] * size[..., 1], epsilon)
    return common / union - (enclosing - union) / enclosing
