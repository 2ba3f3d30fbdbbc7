"""Geometry of boxes and priors. Boxes are xyxy in one unit, any leading shape, float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-6  # floor of a union or an enclosing area, as in the original


class Priors(NamedTuple):
    """Centres that predict: all levels, finest first, rows of an image top to bottom."""

    centers: np.ndarray  # [P, 2] float32, x and y in input pixels
    strides: np.ndarray  # [P] float32, pixels
    level_sizes: tuple[int, ...]  # priors per level; they sum to P


def make_priors(input_size: tuple[int, int], strides: tuple[int, ...], offset: float) -> Priors:
    """Priors of an input of (height, width) pixels.

    `offset` is the centre's place in its cell in strides: 0.5 for NanoDet, 0 for NanoDet-Plus,
    as the published weights of each expect.
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


def cells(priors: Priors, scale: float) -> np.ndarray:
    """Square boxes [P, 4] of `scale` strides around the priors' centres (ATSS's anchors)."""
    half = 0.5 * (priors.strides * np.float32(scale))[:, None]
    return np.concatenate([priors.centers - half, priors.centers + half], axis=-1)


def distances_to_boxes(points: jax.Array, distances: jax.Array) -> jax.Array:
    """Boxes [..., 4] from points [..., 2] and distances [..., 4] to left, top, right, bottom."""
    low, high = points - distances[..., :2], points + distances[..., 2:]
    return jnp.concatenate([low, high], axis=-1)


def boxes_to_distances(points: jax.Array, boxes: jax.Array) -> jax.Array:
    """Distances [..., 4] from points [..., 2] to the sides of boxes; negative outside."""
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def clip_boxes(boxes: jax.Array, height: jax.Array | int, width: jax.Array | int) -> jax.Array:
    """Boxes with every corner moved into [0, width] x [0, height]."""
    bound = jnp.asarray([width, height, width, height], boxes.dtype)
    return jnp.clip(boxes, 0, jnp.broadcast_to(bound, boxes.shape))


def area(boxes: jax.Array) -> jax.Array:
    """Signed area [...] of boxes [..., 4]: width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """Area common to boxes a and b, which broadcast against each other."""
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:])
    size = jnp.maximum(high - low, 0)
    return size[..., 0] * size[..., 1]


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of boxes that broadcast: `iou(a[:, None], b[None])` is pairwise."""
    common = intersection(a, b)
    return common / jnp.maximum(area(a) + area(b) - common, EPSILON)


def iof(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over the area of `a` ("foreground"), for boxes that broadcast."""
    return intersection(a, b) / jnp.maximum(area(a), EPSILON)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised iou, in [-1, 1], of boxes that broadcast (Rezatofighi et al., 2019)."""
    common = intersection(a, b)
    union = jnp.maximum(area(a) + area(b) - common, EPSILON)
    low = jnp.minimum(a[..., :2], b[..., :2])
    high = jnp.maximum(a[..., 2:], b[..., 2:])
    size = jnp.maximum(high - low, 0)
    enclosing = jnp.maximum(size[..., 0] * size[..., 1], EPSILON)
    return common / union - (enclosing - union) / enclosing
