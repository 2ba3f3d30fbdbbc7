"""Dynamic soft labels against a plain loop, over random and difficult boxes."""

from functools import partial

import jax
import numpy as np
import pytest

from nanodet_jax import boxes
from nanodet_jax.losses.assigners.dynamic_soft_label import DynamicSoftLabel, assignment_cost
from nanodet_jax.runtime import backend
from nanodet_jax.structures import GroundTruth
from tests import oracles
from tests.losses import builders
from tests.losses.builders import stack

SETTINGS = {"topk": 13, "iou_factor": 3.0}
SIZES = {"tiny": (16, 16), "square": (64, 64), "wide": (32, 96)}  # tiny has seven priors
PRIORS = {name: boxes.make_priors(size, (8, 16, 32, 64), 0.0) for name, size in SIZES.items()}
CLASSES, SLOTS = 5, 8
RULES = {"any": True, "own": False}  # whose priors a box may take
TRACED = []


@partial(backend.jit, static_argnames=("size", "rule", "ignore_threshold"))
def assign(truth, class_logits, predicted, size, rule, ignore_threshold=0.5):
    TRACED.append((size, rule))
    assigner = DynamicSoftLabel(
        ignore_threshold=ignore_threshold, priors_of_any_box=RULES[rule], **SETTINGS
    )
    return assigner.assign_decoded(class_logits, predicted, truth, PRIORS[size])


def ground_truth(objects=(), regions=(), slots=SLOTS, labels=None):
    """Ground truth of one image, with labels 0, 1, ... unless they are given."""
    labels = np.arange(len(objects)) % CLASSES if labels is None else labels
    return builders.ground_truth(objects, regions, labels, slots)


def random_truth(size, seed, learned, ignored=0, slots=SLOTS):
    """Boxes from 2 pixels to more than the image, clipped to it: some end up without area.

    Coordinates are multiples of 1/8 pixel, so that the overlap of a box with itself is exactly 1.
    """
    random = np.random.default_rng(seed)
    height, width = SIZES[size]
    count = learned + ignored
    centers = random.uniform(-0.1, 1.1, (count, 2)) * (width, height)
    sides = np.exp(random.uniform(np.log(2), np.log(1.5 * height), (count, 2)))
    corners = np.concatenate([centers - sides / 2, centers + sides / 2], axis=-1)
    corners = np.round(np.clip(corners, 0, (width, height, width, height)) * 8) / 8
    labels = random.integers(0, CLASSES, learned)
    return ground_truth(corners[:learned], corners[learned:], slots, labels)


def predictions(truth, size, seed, kind="near"):
    """Class logits and boxes of all priors; `kind` names how the boxes relate to the ground truth.

    near: most are close to a ground-truth box; the others lie around their prior. exact: each
    equals a ground-truth box. points: at the prior, without area. away: far from all boxes.
    """
    random = np.random.default_rng(seed)
    priors = PRIORS[size]
    count = len(priors.strides)
    class_logits = random.normal(-2, 2, (count, CLASSES)).astype(np.float32)
    reach = random.exponential(1, (count, 4)) * priors.strides[:, None]
    low, high = priors.centers - reach[:, :2], priors.centers + reach[:, 2:]
    around = np.concatenate([low, high], axis=-1)
    used = np.flatnonzero(truth.valid | truth.ignore)
    learned = around
    if len(used):  # a box that the prior is inside, if there is one
        inside = np.stack([is_inside(box, priors) for box in truth.boxes[used]], axis=-1)
        learned = truth.boxes[used[np.argmax(inside + random.random(inside.shape), axis=-1)]]
    low, high = np.split(learned + random.normal(0, 2, (count, 4)), 2, axis=-1)
    noisy = np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=-1)
    predicted = {
        "near": np.where(random.random((count, 1)) < 0.8, noisy, around),
        "exact": learned,
        "points": np.concatenate([priors.centers, priors.centers], axis=-1),
        "away": around - 1000,
    }
    return class_logits, predicted[kind].astype(np.float32)


def check(truth, class_logits, predicted, size, rule, ignore_threshold=0.5):
    targets = assign(truth, class_logits, predicted, size, rule, ignore_threshold)
    index, overlap = oracles.dynamic_soft_label(
        PRIORS[size],
        truth,
        class_logits,
        predicted,
        ignore_threshold=ignore_threshold,
        priors_of_any_box=RULES[rule],
        **SETTINGS,
    )
    np.testing.assert_array_equal(targets.gt_index, index)
    np.testing.assert_allclose(targets.overlap, overlap, rtol=1e-5)
    assert targets.gt_index.dtype == np.int32 and targets.overlap.dtype == np.float32
    return np.asarray(targets.gt_index)


def is_inside(box, priors):
    x, y = priors.centers.T
    return (box[0] < x) & (x < box[2]) & (box[1] < y) & (y < box[3])


# Boxes per case; each runs on all sizes of image, where it lies inside, across or outside.
CASES = {
    "no box": [],
    "one": [[3, 5, 27, 30]],
    "the same twice": [[2, 2, 30, 30], [2, 2, 30, 30]],
    "the same eight times": [[7, 7, 25, 25]] * 8,
    "overlapping": [[2, 2, 30, 30], [10, 4, 60, 30], [0, 8, 32, 32], [12, 12, 20, 20]],
    "outside": [[-90, -90, -20, -10], [900, 900, 990, 990], [-50, 4, -10, 20]],
    "across the edge": [[-60, -60, 20, 20], [10, 10, 900, 900]],
    "no prior inside": [[1, 1, 7, 7], [9.5, 9.5, 15.5, 15.5], [17, 1, 23, 90], [8.5, 8, 9, 8.5]],
    "none inside but in others": [[1, 1, 7, 7], [9, 9, 15, 15], [-5, -5, 90, 90]],
    "edges at priors": [[8, 8, 16, 16], [0, 0, 8, 8], [0, 0, 24, 24]],  # not inside
    "edges beyond priors": [[7.99, 7.99, 16.01, 16.01], [-0.01, -0.01, 0.01, 0.01]],
    "no area": [[0, 0, 0, 0], [0, 3, 0, 20], [12, 0, 40, 0], [96, 32, 96, 32], [8, 8, 8, 8]],
    "no area but others": [[0, 0, 0, 0], [16, 3, 16, 20], [3, 5, 27, 30], [4, 64, 9, 64]],
    "larger than the image": [[-500, -500, 700, 800], [0, 0, 96, 64]],
    "slivers": [[-1, 7.9, 96, 8.1], [7.9, -1, 8.1, 64], [0, 0, 96, 1], [5, 0, 6, 64]],
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_assignment_of_difficult_boxes_matches_the_loop(case, rule):
    for size in SIZES:
        truth = ground_truth(CASES[case])
        for kind in ("near", "exact", "points", "away"):
            check(truth, *predictions(truth, size, len(case), kind), size, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES)
def test_assignment_of_random_boxes_matches_the_loop(size, rule):
    random = np.random.default_rng(0)
    for seed in range(12):
        learned = random.integers(0, SLOTS + 1)
        truth = random_truth(size, seed, learned, random.integers(0, SLOTS + 1 - learned))
        for kind in ("near", "exact"):
            check(truth, *predictions(truth, size, seed, kind), size, rule)


@pytest.mark.parametrize("rule", RULES)
def test_assignment_of_sixty_boxes_matches_the_loop(rule):
    truth = random_truth("square", 1, 60, 4, slots=64)
    index = check(truth, *predictions(truth, "square", 1), "square", rule)
    assert len(set(index[index >= 0])) > 10
    assert np.sum(index == -2) > 0


@pytest.mark.parametrize("level", ["sure", "sure of nothing", "sure of all", "of two minds"])
def test_assignment_by_extreme_logits_matches_the_loop(level):
    random = np.random.default_rng(3)
    truth = ground_truth(CASES["overlapping"] + CASES["no area"][:2])
    for size in SIZES:
        for kind in ("near", "exact", "points", "away"):
            class_logits, predicted = predictions(truth, size, 3, kind)
            class_logits = {
                "sure": class_logits * 60,
                "sure of nothing": np.full_like(class_logits, -60),
                "sure of all": np.full_like(class_logits, 60),
                "of two minds": random.choice([-60, 60], class_logits.shape).astype(np.float32),
            }[level]
            targets = [check(truth, class_logits, predicted, size, rule) for rule in RULES]
            assert all(np.any(index >= 0) for index in targets)


@pytest.mark.parametrize(
    "rule, held, expected",
    [(r, *pair) for r in RULES for pair in ((0, 1), (1, 1), (3, 1))]
    + [(r, *pair) for r in RULES for pair in ((4, 2), (7, 3), (13, 6), (40, 6))],
)
def test_number_of_priors_of_a_box_is_the_sum_of_its_ious(rule, held, expected):
    # Of the 85 predictions, some overlap half of the box, and the others none of it.
    truth = ground_truth([[-8, -8, 72, 72]])
    class_logits, predicted = predictions(truth, "square", 4, "away")
    predicted[:held] = -8, -8, 72, 32
    index = check(truth, class_logits, predicted, "square", rule)
    assert np.sum(index == 0) == expected and np.sum(index == -1) == 85 - expected


@pytest.mark.parametrize("rule", RULES)
def test_box_takes_topk_priors_or_all_of_fewer(rule):
    truth = ground_truth([[-8, -8, 72, 72]])
    for size, expected in (("square", 13), ("tiny", 7)):
        index = check(truth, *predictions(truth, size, 5, "exact"), size, rule)
        assert np.sum(index == 0) == expected


@pytest.mark.parametrize("rule", RULES)
def test_first_of_boxes_with_equal_cost_takes_the_prior(rule):
    # No prediction overlaps any box, so all boxes cost the same, whatever their classes.
    large = [[-8, -8, 72, 72], [-7, -7, 71, 71], [-9, -9, 70, 70]]
    for seed in range(20):
        for labels in ([3, 1, 4], [0, 2, 1], [4, 4, 0]):
            truth = ground_truth(large, labels=labels)
            class_logits, predicted = predictions(truth, "square", seed, "away")
            index = check(truth, class_logits + 2, predicted, "square", rule)
            assert sorted(index)[-2:] == [-1, 0]
    # Every prediction overlaps every box: three copies of one box.
    truth = ground_truth(large[:1] * 3, labels=[2, 2, 2])
    index = check(truth, *predictions(truth, "square", 6, "exact"), "square", rule)
    assert np.sum(index == 0) == 13 and not np.any(index > 0)


def test_cost_of_boxes_without_overlap_is_equal_to_the_last_bit():
    # Leave out the overlap term, whose large constant would round differences away.
    class_logits = np.random.default_rng(9).normal(-2, 3, (2000, CLASSES)).astype(np.float32)
    cost = backend.jit(partial(assignment_cost, iou_factor=0.0))
    nothing, labels = np.zeros((CLASSES, 2000), np.float32), np.arange(CLASSES)
    of_box = np.asarray(cost(class_logits, nothing, labels))
    np.testing.assert_array_equal(of_box, np.broadcast_to(of_box[:1], of_box.shape))
    expected = [sum(oracles.quality_focal(z, 0.0) for z in logits) for logits in class_logits[:50]]
    np.testing.assert_allclose(of_box[0, :50], expected, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_prior_taken_by_two_boxes_goes_to_a_third_that_costs_less(rule):
    # Two priors lie inside all boxes. The last box takes one, and the other boxes take the other.
    priors = PRIORS["square"]
    claimed, other = np.flatnonzero((priors.centers == 16).all(axis=1))
    truth = ground_truth([[0, 0, 20, 20], [0, 0, 20, 20], [8, 8, 40, 40]])
    class_logits, predicted = predictions(truth, "square", 7, "away")
    class_logits[:] = 2  # so that a higher overlap costs less
    predicted[claimed], predicted[other] = [8, 8, 40, 38], [8, 8, 40, 40]
    index = check(truth, class_logits, predicted, "square", rule)
    assert index[claimed] == index[other] == 2 and np.sum(index >= 0) == 2


def test_box_without_a_prior_inside_takes_the_nearest_or_one_of_another_box():
    priors = PRIORS["square"]
    small, large = [9.5, 9.5, 15.5, 15.5], [33, 33, 63, 63]
    nearest = 2 * 8 + 2  # (16, 16) of stride 8; of stride 16 there is one in the same place
    for seed in range(5):
        both, alone = ground_truth([small, large]), ground_truth([small])
        predicted = predictions(both, "square", seed)
        # The original: some prior of the other box, or none if there is no other.
        index = check(both, *predicted, "square", "any")
        assert all(is_inside(large, priors)[index >= 0])
        assert np.all(check(alone, *predicted, "square", "any") == -1)
        for truth in (both, alone):
            index = check(truth, *predicted, "square", "own")
            assert np.flatnonzero(index == 0) == nearest
    # The small box takes a prior there that costs less for the small box than for the large one.
    class_logits, predicted = predictions(both, "square", 0, "away")
    there = 5 * 8 + 5
    predicted[there] = small
    assert check(both, class_logits, predicted, "square", "any")[there] == 0


def test_prior_outside_a_box_takes_it_only_as_the_nearest():
    seen = {"inside": 0, "nearest": 0, "elsewhere": 0}
    for seed in range(12):
        truth = random_truth("square", 100 + seed, 8)
        predicted = predictions(truth, "square", seed)
        for rule in RULES:
            index = np.asarray(assign(truth, *predicted, "square", rule).gt_index)
            for slot, box in enumerate(truth.boxes):
                inside = is_inside(box, PRIORS["square"])
                takers = np.flatnonzero(index == slot)
                if rule == "any":
                    seen["elsewhere"] += np.sum(~inside[takers])
                elif np.any(inside):
                    assert all(inside[takers])
                    seen["inside"] += len(takers)
                else:
                    center = (box[:2] + box[2:]) / 2
                    distance = np.linalg.norm(PRIORS["square"].centers - center, axis=-1)
                    assert set(takers) <= {np.argmin(distance)}
                    seen["nearest"] += len(takers)
                assert rule == "any" or oracles.area(box) > 0 or not len(takers)
    assert min(seen.values()) > 0, seen  # each kind occurs


@pytest.mark.parametrize("rule", RULES)
def test_predicted_boxes_in_ignore_regions_are_ignored_unless_positive(rule):
    everything, region = [[-500, -500, 500, 500]], [[40, 40, 60, 60]]
    objects = [[3, 5, 27, 30], [30, 10, 60, 50]]
    truth = ground_truth(objects, everything)
    class_logits, predicted = predictions(truth, "square", 8)
    index = check(truth, class_logits, predicted, "square", rule)
    assert set(index) == {-2, 0, 1}
    without = check(ground_truth(objects), class_logits, predicted, "square", rule)
    np.testing.assert_array_equal(without, np.where(index == -2, -1, index))
    off = check(truth, class_logits, predicted, "square", rule, ignore_threshold=0.0)
    np.testing.assert_array_equal(off, without)

    # More than half of the predicted box must be covered. The position of its prior is irrelevant.
    truth = ground_truth([], region)
    class_logits, predicted = predictions(truth, "square", 8, "away")
    predicted[:5] = [
        [42, 42, 58, 58],
        [30, 40, 50, 60],
        [31, 40, 51, 60],
        [0, 0, 64, 64],
        region[0],
    ]
    index = check(truth, class_logits, predicted, "square", rule)
    assert np.flatnonzero(index == -2).tolist() == [0, 2, 4] and set(index) == {-1, -2}
    # A box without area lies in no region.
    points = predictions(truth, "square", 8, "points")
    assert np.all(check(truth, *points, "square", rule) == -1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_padding_slots_do_not_change_the_assignment(seed, rule):
    random = np.random.default_rng(seed)
    truth = random_truth("square", 30 + seed, SLOTS - 2, 2)
    predicted = predictions(truth, "square", seed)
    plain = assign(truth, *predicted, "square", rule)
    slots = 64
    at = np.sort(random.permutation(slots)[:SLOTS])
    noise = random_truth("square", 40 + seed, slots, slots=slots)  # of slots that are padding
    padded = GroundTruth(noise.boxes, noise.labels, np.zeros(slots, bool), np.zeros(slots, bool))
    for leaf, original in zip(padded[:4], truth[:4]):
        leaf[at] = original
    more = assign(padded, *predicted, "square", rule)
    index = np.asarray(plain.gt_index)
    assert np.sum(index >= 0) > 6 and np.any(index == -2)
    expected = np.where(index >= 0, at[np.maximum(index, 0)], index)
    np.testing.assert_array_equal(more.gt_index, expected)
    np.testing.assert_allclose(more.overlap, plain.overlap, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_batch_is_assigned_like_its_images_one_by_one_and_traced_once(rule):
    truths = [
        ground_truth(),
        random_truth("wide", 60, 8),
        random_truth("wide", 61, 2, 3),
        ground_truth(CASES["no area"]),
    ]
    images = [(truth, *predictions(truth, "wide", i)) for i, truth in enumerate(truths)]
    batch = stack(images)
    together = jax.vmap(lambda *image: assign(*image, "wide", rule))(*batch)
    assign(*images[0], "wide", rule)
    traced = len(TRACED)
    for i, image in enumerate(images):
        alone = assign(*image, "wide", rule)
        np.testing.assert_array_equal(together.gt_index[i], alone.gt_index)
        np.testing.assert_allclose(together.overlap[i], alone.overlap, rtol=1e-6)
    assert len(TRACED) == traced
