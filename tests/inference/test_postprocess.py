"""Suppression against a greedy loop, and the effect of the limit on candidates."""

from functools import partial

import jax
import numpy as np
import pytest

from nanodet_jax.inference import postprocess
from tests import oracles

P, C, N = 60, 3, 20  # of the small cases


@partial(jax.jit, static_argnames=("max_detections", "topk"))
def suppress(boxes, scores, max_detections=N, topk=P * C):
    return postprocess.non_maximum_suppression(
        boxes,
        scores,
        score_threshold=0.05,
        iou_threshold=0.6,
        max_detections=max_detections,
        pre_nms_topk=topk,
    )


def check(boxes, scores, max_detections=N, topk=P * C):
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    found = suppress(boxes, scores, max_detections, topk)
    kept = oracles.non_maximum_suppression(
        boxes, scores, score_threshold=0.05, iou_threshold=0.6, max_detections=max_detections
    )
    count = len(kept)
    priors, labels = np.array(kept, int).reshape(-1, 2).T
    assert found.valid.tolist() == [True] * count + [False] * (max_detections - count)
    np.testing.assert_array_equal(found.labels[:count], labels)
    np.testing.assert_array_equal(found.boxes[:count], boxes[priors])
    np.testing.assert_array_equal(found.scores[:count], scores[priors, labels])
    for rest in (found.boxes, found.scores, found.labels):
        assert not np.any(rest[count:])
    return found


def crowd(count, seed, spread=200.0):
    """Boxes of which many overlap."""
    random = np.random.default_rng(seed)
    corner = random.uniform(0, spread, (count, 2))
    return np.concatenate([corner, corner + random.uniform(20, 90, (count, 2))], axis=-1)


@pytest.mark.parametrize("seed", range(4))
def test_suppression_of_random_boxes_matches_the_loop(seed):
    scores = np.random.default_rng(seed).uniform(0, 1, (P, C)) ** 3
    for spread in (20.0, 200.0):
        assert not check(crowd(P, seed, spread), scores).truncated


def test_suppression_of_tied_scores_matches_the_loop():
    # The order of equal scores is that of priors, then classes.
    scores = np.random.default_rng(0).integers(0, 4, (P, C)) / 4
    check(crowd(P, 1), scores)
    check(crowd(P, 2, spread=2000.0), scores)


def test_equal_scores_are_kept_in_order_of_priors():
    check(crowd(P, 3), np.full((P, C), 0.5))
    apart = np.arange(P)[:, None] * 100.0 + np.array([0, 0, 50, 50])
    found = check(apart, np.full((P, C), 0.5))
    assert found.labels.tolist() == [i % C for i in range(N)]


def test_scores_up_to_the_threshold_are_dropped():
    for score in (0.0, 0.05):  # the threshold itself is not enough
        found = check(crowd(P, 4), np.full((P, C), np.float32(score)))
        assert not found.valid.any() and not found.truncated
    check(crowd(P, 4), np.full((P, C), np.nextafter(np.float32(0.05), np.float32(1))))


def test_equal_boxes_leave_one_of_each_class():
    scores = np.random.default_rng(5).uniform(0.1, 1, (P, C))
    found = check(np.tile([10.0, 20, 50, 60], (P, 1)), scores)
    assert np.sum(found.valid) == C  # one of each class
    assert sorted(found.labels[:C].tolist()) == list(range(C))


def test_boxes_without_area_suppress_none():
    scores = np.random.default_rng(6).uniform(0.1, 1, (P, C))
    found = check(np.tile([7.0, 7, 7, 7], (P, 1)), scores)
    assert found.valid.all()
    mixed = crowd(P, 7)
    mixed[::2, 2] = mixed[::2, 0]
    check(mixed, scores)


def test_box_with_iou_at_the_threshold_is_kept():
    # 6 of 10 columns shared: the iou is exactly 0.6, which is not more than 0.6.
    boxes = np.zeros((P, 4))
    boxes[0], boxes[1], boxes[2] = [0, 0, 8, 10], [2, 0, 10, 10], [0, 0, 10, 10]
    scores = np.zeros((P, C))
    scores[:3, 1] = 0.9, 0.8, 0.7
    assert np.sum(check(boxes, scores).valid) == 2  # the third is at 0.8 with both


def test_suppressed_box_suppresses_none():
    boxes, scores = np.zeros((P, 4)), np.zeros((P, C))
    for i, left in enumerate((0, 2, 4)):  # neighbors overlap by 8/12, the first and last by 6/14
        boxes[i] = [left, 0, left + 10, 10]
        scores[i, 0] = 0.9 - 0.1 * i
    found = check(boxes, scores)
    assert found.boxes[:2, 0].tolist() == [0, 4] and np.sum(found.valid) == 2


def test_suppression_of_thousands_of_boxes_matches_the_loop():
    random = np.random.default_rng(8)
    boxes, scores = crowd(2000, 8, spread=300.0), random.uniform(0, 1, (2000, 2))
    exact = check(boxes, scores, 100, 4000)
    capped = check(boxes, scores, 100, 1000)  # enough: the best 1000 contain the 100
    assert not exact.truncated and not capped.truncated


def test_truncated_is_set_only_where_the_limit_may_have_cost_a_detection():
    scores = np.random.default_rng(9).uniform(0.1, 1, (P, C))
    same = np.tile([10.0, 20, 50, 60], (P, 1))
    capped = suppress(same.astype(np.float32), scores.astype(np.float32), topk=P)
    assert capped.truncated and np.sum(capped.valid) <= C
    # The result is that of the loop on the best P pairs.
    floor = np.sort(scores.ravel())[-P]
    kept = oracles.non_maximum_suppression(
        same,
        np.where(scores >= floor, scores, 0),
        score_threshold=0.05,
        iou_threshold=0.6,
        max_detections=N,
    )
    assert capped.labels[: len(kept)].tolist() == [label for _, label in kept]
    # As many pairs as the limit, or too few boxes but all pairs considered: not truncated.
    few = np.where(scores >= floor, scores, 0).astype(np.float32)
    assert not suppress(same.astype(np.float32), few, topk=P).truncated
    assert not suppress(same.astype(np.float32), scores.astype(np.float32)).truncated


def test_batch_is_suppressed_like_its_images_one_by_one():
    boxes = np.stack([crowd(P, seed) for seed in range(3)]).astype(np.float32)
    scores = np.random.default_rng(10).uniform(0, 1, (3, P, C)).astype(np.float32)
    together = jax.vmap(suppress)(boxes, scores)
    alone = [suppress(*image) for image in zip(boxes, scores)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    jax.tree.map(np.testing.assert_array_equal, together, stacked)
