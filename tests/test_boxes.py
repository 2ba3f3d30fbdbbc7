"""Box geometry, compared with loops over single boxes; identities; boxes without area."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax import boxes
from tests import oracles

HOSTILE = np.array(
    [
        [0, 0, 0, 0],  # a point, twice
        [0, 0, 0, 0],
        [5, 5, 5, 9],  # a line
        [4, 4, 5, 5],  # one pixel
        [4, 4, 4.001, 4.001],
        [0, 0, 320, 320],
        [-1e4, -1e4, 1e4, 1e4],
        [400, 500, 420, 510],
        [5, 5, 10, 10],  # touches the line
        [10, 5, 15, 10],  # touches its left neighbor
    ],
    np.float32,
)


def random_boxes(count, seed):
    random = np.random.default_rng(seed)
    corners = random.uniform(-50, 370, (count, 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1).astype(np.float32)


@pytest.mark.parametrize("name", ["intersection", "iou", "iof", "giou"])
def test_overlaps_of_all_pairs_match_the_loop(name):
    every = np.concatenate([HOSTILE, random_boxes(40, 0)])
    actual = getattr(boxes, name)(jnp.asarray(every)[:, None], jnp.asarray(every)[None])
    loop = getattr(oracles, name)
    expected = [[loop(a, b) for b in every] for a in every]
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


def test_overlaps_satisfy_identities():
    a, b = jnp.asarray(random_boxes(200, 1)), jnp.asarray(random_boxes(200, 2))
    np.testing.assert_allclose(boxes.iou(a, a), 1, rtol=1e-6)
    np.testing.assert_allclose(boxes.iof(a, a), 1, rtol=1e-6)
    np.testing.assert_allclose(boxes.giou(a, a), 1, rtol=1e-6)
    np.testing.assert_array_equal(boxes.iou(a, b), boxes.iou(b, a))
    np.testing.assert_array_equal(boxes.giou(a, b), boxes.giou(b, a))
    np.testing.assert_allclose(boxes.iou(2 * a, 2 * b), boxes.iou(a, b), rtol=1e-5)
    np.testing.assert_allclose(boxes.giou(a + 16, b + 16), boxes.giou(a, b), rtol=1e-3, atol=1e-5)
    assert jnp.all(boxes.giou(a, b) <= boxes.iou(a, b) + 1e-6)
    assert jnp.all(boxes.giou(a, b) >= -1)
    # A box within a larger one: iof is 1, iou is the ratio of areas.
    small, large = jnp.array([2.0, 2, 4, 4]), jnp.array([0.0, 0, 8, 8])
    assert boxes.iof(small, large) == 1 and boxes.iou(small, large) == 4 / 64
    assert boxes.iof(large, small) == 4 / 64


def test_iou_broadcasts_leading_shapes():
    a, b = random_boxes(6, 3).reshape(2, 3, 1, 4), random_boxes(5, 4).reshape(1, 1, 5, 4)
    a, b = jnp.asarray(a), jnp.asarray(b)
    assert boxes.iou(a, b).shape == (2, 3, 5)
    np.testing.assert_array_equal(
        boxes.iou(a, b)[1, 2], boxes.iou(jnp.tile(a[1, 2], (5, 1)), b[0, 0])
    )
    assert boxes.iou(jnp.zeros((0, 1, 4)), b[0]).shape == (0, 5)


@pytest.mark.parametrize("function", [boxes.iou, boxes.giou])
def test_gradients_of_degenerate_boxes_are_finite(function):
    every = jnp.asarray(np.concatenate([HOSTILE, random_boxes(20, 5)]))
    pairs = every[:, None], every[None]
    for argument in (0, 1):
        gradient = jax.jit(jax.grad(lambda *ab: jnp.sum(function(*ab)), argument))(*pairs)
        assert jnp.all(jnp.isfinite(gradient))


def test_gradient_of_disjoint_boxes_is_zero_for_iou_but_not_giou():
    a, b = jnp.array([0.0, 0, 10, 10]), jnp.array([30.0, 0, 40, 10])
    assert jax.grad(boxes.iou)(a, b).tolist() == [0, 0, 0, 0]
    assert jax.grad(boxes.giou)(a, b)[2] > 0


def test_boxes_to_distances_is_inverse_to_distances_to_boxes():
    points = np.random.default_rng(0).uniform(0, 320, (50, 2)).astype(np.float32)
    corners = jnp.asarray(random_boxes(50, 6))
    distances = boxes.boxes_to_distances(jnp.asarray(points), corners)
    back = boxes.distances_to_boxes(jnp.asarray(points), distances)
    np.testing.assert_allclose(back, corners, atol=1e-4)
    outside = boxes.boxes_to_distances(jnp.array([0.0, 0.0]), jnp.array([4.0, -2.0, 6.0, 8.0]))
    assert outside.tolist() == [-4, 2, 6, 8]


def test_clip_boxes_moves_corners_into_the_image():
    clipped = boxes.clip_boxes(jnp.array([[-5.0, -6, 400, 90], [330, 110, 340, 120]]), 100, 320)
    assert clipped.tolist() == [[0, 0, 320, 90], [320, 100, 320, 100]]


@pytest.mark.parametrize(
    ("size", "strides", "count"),
    [
        ((320, 320), (8, 16, 32), 2100),
        ((416, 416), (8, 16, 32), 3549),
        ((320, 320), (8, 16, 32, 64), 2125),
        ((416, 416), (8, 16, 32, 64), 3598),  # the last level is 7 x 7: rounded up
        ((32, 96), (8, 16, 32), 63),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_priors_match_the_loop(size, strides, count, offset):
    priors = boxes.make_priors(size, strides, offset)
    expected = []
    for stride in strides:
        for row in range((size[0] + stride - 1) // stride):
            for column in range((size[1] + stride - 1) // stride):
                expected.append(((column + offset) * stride, (row + offset) * stride, stride))
    expected = np.array(expected, np.float32)
    np.testing.assert_array_equal(priors.centers, expected[:, :2])
    np.testing.assert_array_equal(priors.strides, expected[:, 2])
    assert len(priors.centers) == count == sum(priors.level_sizes)
    assert priors.centers.dtype == priors.strides.dtype == np.float32
    anchors = boxes.anchors(priors, 5.0)
    np.testing.assert_array_equal((anchors[:, :2] + anchors[:, 2:]) / 2, priors.centers)
    sides = anchors[:, 2:] - anchors[:, :2]
    np.testing.assert_array_equal(sides, 5 * expected[:, 2:].repeat(2, 1))
