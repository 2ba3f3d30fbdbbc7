"""ATSS against a plain loop, over random and difficult boxes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax import boxes
from nanodet_jax.losses.assigners.atss import ATSS
from nanodet_jax.structures import GroundTruth, Predictions
from tests import oracles
from tests.losses.builders import ground_truth, stack

SETTINGS = {"topk": 9, "anchor_scale": 5.0}
SIZES = {"small": (32, 32), "wide": (64, 160), "full": (320, 320)}
PRIORS = {name: boxes.make_priors(size, (8, 16, 32), 0.5) for name, size in SIZES.items()}
SLOTS = {"small": 8, "wide": 8, "full": 300}


@partial(jax.jit, static_argnames=("size", "ignore_threshold"))
def assign(truth, size, ignore_threshold):
    priors = PRIORS[size]
    unused = Predictions(
        jnp.zeros((len(priors.strides), 1)), jnp.zeros((len(priors.strides), 4, 8))
    )
    return ATSS(ignore_threshold=ignore_threshold, **SETTINGS).assign(unused, truth, priors)


def random_boxes(count, size, seed, grid=None):
    """Boxes around points of the image, some partly outside; on multiples of `grid` if given."""
    random = np.random.default_rng(seed)
    height, width = SIZES[size]
    centers = random.uniform(0, 1, (count, 2)) * (width, height)
    sides = np.exp(random.uniform(np.log(2), np.log(1.5 * height), (count, 2)))
    corners = np.concatenate([centers - sides / 2, centers + sides / 2], axis=-1)
    return np.round(corners / grid) * grid if grid else corners


def check(truth, size, ignore_threshold=0.5):
    targets = assign(truth, size, ignore_threshold)
    index, overlap = oracles.atss(
        PRIORS[size],
        truth.boxes,
        truth.valid,
        truth.ignore,
        ignore_threshold=ignore_threshold,
        **SETTINGS,
    )
    np.testing.assert_array_equal(targets.gt_index, index)
    np.testing.assert_allclose(targets.overlap, overlap, rtol=1e-5)
    assert targets.gt_index.dtype == np.int32 and targets.overlap.dtype == np.float32
    return np.asarray(targets.gt_index)


# Boxes per case; each runs on all three sizes of image, where it lies inside, across or outside.
CASES = {
    "no box": [],
    "one": [[3, 5, 27, 30]],
    "the same twice": [[2, 2, 30, 30], [2, 2, 30, 30]],
    "the same eight times": [[8, 8, 24, 24]] * 8,
    "outside": [[-90, -90, -20, -10], [900, 900, 990, 990], [-50, 4, -10, 20]],
    "centre outside": [[-60, -60, 20, 20], [10, 10, 900, 900]],
    "between priors": [[8, 8, 24, 24], [16, 0, 32, 32], [0, 0, 32, 32], [0, 0, 16, 16]],
    "on priors": [[0, 0, 8, 8], [4, 4, 20, 20], [8, 8, 40, 24]],
    "one pixel": [[3, 3, 4, 4], [3.5, 3.5, 4.5, 4.5], [15, 15, 16, 16], [11.9, 11.9, 12.1, 12.1]],
    "no area": [[4, 4, 4, 4], [0, 0, 0, 20], [12, 0, 12, 32], [5, 20, 25, 20]],
    "larger than the image": [[-500, -500, 700, 800], [0, 0, 320, 320]],
    "edges at centres": [[4, 4, 12, 12], [3.995, 3.995, 12.005, 12.005]],  # not inside enough
    "edges beyond centres": [[3.98, 3.98, 12.02, 12.02], [4, 4, 12, 12]],
    "slivers": [[0, 11, 32, 13], [11, 0, 13, 32], [0, 0, 32, 1]],
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_assignment_of_difficult_boxes_matches_the_loop(case, size):
    check(ground_truth(CASES[case], slots=SLOTS[size]), size)


@pytest.mark.parametrize("grid", [None, 0.5, 8])
@pytest.mark.parametrize("size", ["small", "wide"])
def test_assignment_of_random_boxes_matches_the_loop(size, grid):
    random = np.random.default_rng(0)
    for seed in range(8):
        every = random_boxes(8, size, seed, grid)
        learned = random.integers(0, 9)
        ignored = random.integers(0, 9 - learned)
        truth = ground_truth(every[:learned], every[learned : learned + ignored])
        check(truth, size)
        check(truth, size, ignore_threshold=0.0)


@pytest.mark.parametrize("grid", [None, 4])
def test_assignment_of_three_hundred_boxes_matches_the_loop(grid):
    index = check(ground_truth(random_boxes(300, "full", 7, grid), slots=300), "full")
    assert np.sum(index >= 0) > 300


def test_priors_in_ignore_regions_are_ignored_unless_positive():
    everything = [[-100, -100, 500, 500]]
    # All priors are ignored. Nine per level are still candidates, in their usual order.
    for gt_boxes in ([], [[3, 5, 27, 30]], [[40, 8, 90, 60]]):
        index = check(ground_truth(gt_boxes, everything), "wide")
        assert set(index) <= {-2, 0}
    index = check(ground_truth([[3, 5, 27, 30]], everything), "wide", ignore_threshold=0.0)
    assert set(index) == {-1, 0}
    left = [[-100, -100, 80, 200]]
    assert set(check(ground_truth([], left), "wide")) == {-1, -2}
    check(ground_truth([[3, 5, 27, 30], [70, 10, 100, 40]], left), "wide")
    # On an image with fewer priors than candidates, an ignored prior may still be positive.
    index = check(ground_truth([[-20, -20, 52, 52]], everything), "small")
    assert 0 in index and -2 in index


@pytest.mark.parametrize("seed", range(3))
def test_padding_slots_do_not_change_the_assignment(seed):
    random = np.random.default_rng(seed)
    every = random_boxes(4, "wide", 30 + seed)
    plain = assign(ground_truth(every[:3], every[3:]), "wide", 0.5)
    at = np.sort(random.permutation(8)[:4])
    noise = random_boxes(8, "wide", 40 + seed).astype(np.float32)  # of slots that are padding
    noise[at] = every
    valid, ignore = np.isin(np.arange(8), at[:3]), np.isin(np.arange(8), at[3:])
    padded = assign(GroundTruth(noise, np.zeros(8, np.int32), valid, ignore), "wide", 0.5)
    index = np.asarray(plain.gt_index)
    expected = np.where(index >= 0, at[np.maximum(index, 0)], index)
    np.testing.assert_array_equal(padded.gt_index, expected)
    np.testing.assert_array_equal(padded.overlap, plain.overlap)


def test_reordered_boxes_get_the_same_priors():
    every = random_boxes(8, "wide", 50).astype(np.float32)
    order = np.random.default_rng(0).permutation(8)
    plain = assign(ground_truth(every), "wide", 0.5)
    turned = assign(ground_truth(every[order]), "wide", 0.5)
    back = np.asarray(turned.gt_index)
    np.testing.assert_array_equal(plain.gt_index, np.where(back >= 0, order[back], back))
    np.testing.assert_array_equal(plain.overlap, turned.overlap)


def test_prior_claimed_by_two_boxes_goes_to_the_higher_iou():
    inner, outer = [100, 100, 140, 140], [94, 94, 146, 146]
    for pair, first in (([inner, outer], 0), ([outer, inner], 1)):
        index = check(ground_truth(pair, slots=300), "full")
        priors = PRIORS["full"]
        middle = np.flatnonzero((priors.strides == 8) & (priors.centers == 116).all(axis=1))
        assert index[middle] == first


def test_batch_is_assigned_like_its_images_one_by_one():
    images = [
        ground_truth(),
        ground_truth(random_boxes(8, "wide", 60)),
        ground_truth(random_boxes(2, "wide", 61), random_boxes(3, "wide", 62)),
    ]
    batch = stack(images)
    together = jax.vmap(lambda truth: assign(truth, "wide", 0.5))(batch)
    for i, image in enumerate(images):
        alone = assign(image, "wide", 0.5)
        np.testing.assert_array_equal(together.gt_index[i], alone.gt_index)
        np.testing.assert_allclose(together.overlap[i], alone.overlap, rtol=1e-6)
