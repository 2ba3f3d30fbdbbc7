"""The loss of a batch against a loop over images and priors, and what must not change it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax import boxes, config
from nanodet_jax.losses.criterion import objective
from nanodet_jax.runtime import backend
from nanodet_jax.structures import GroundTruth, Predictions
from tests import oracles

SIZE, CLASSES, REG_MAX, SLOTS = (64, 96), 3, 7, 6
PRIORS = boxes.make_priors(SIZE, (8, 16, 32), 0.5)
WEIGHTS = config.Loss(quality_focal=0.7, distribution_focal=0.4, giou=1.5)
PARTS = ("loss_qfl", "loss_bbox", "loss_dfl")
# Objects and ignore regions of the images: several, of which one is wider than the farthest
# distance; none; an ignored half; a crowd.
IMAGES = (
    ([[3, 5, 27, 30], [40, 8, 90, 60], [50, 20, 58, 29], [-250, 10, 350, 54]], []),
    ([], []),
    ([[5, 5, 30, 40], [60, 10, 88, 50]], [[48, -50, 300, 300]]),
    ([[16, 16, 48, 48]] * 3 + [[20, 20, 20, 20], [700, 8, 720, 60], [0, 0, 96, 64]], []),
)


def image_truth(objects, regions, slots=SLOTS):
    table = np.zeros((slots, 4), np.float32)
    every = [*objects, *regions]
    table[: len(every)] = np.reshape(every, (-1, 4))
    slot = np.arange(slots)
    valid = slot < len(objects)
    labels = np.where(valid, (slot * 2 + 1) % CLASSES, 0).astype(np.int32)
    return GroundTruth(table, labels, valid, ~valid & (slot < len(every)))


def batch_truth(images=IMAGES, slots=SLOTS):
    each = [image_truth(*image, slots) for image in images]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def random_predictions(seed):
    random = np.random.default_rng(seed)
    classes = random.normal(-2, 2, (len(IMAGES), len(PRIORS.strides), CLASSES))
    bins = random.normal(0, 1.5, (len(IMAGES), len(PRIORS.strides), 4, REG_MAX + 1))
    return Predictions(classes.astype(np.float32), bins.astype(np.float32))


def local_loss(predictions, truth, axis_name=None):
    return objective(
        (predictions,),
        truth,
        PRIORS,
        assigner=config.Assigner(),
        compat=config.Compat(),
        weights=WEIGHTS,
        axis_name=axis_name,
    )


@backend.jit
def loss_and_gradients(predictions, truth):
    (_, metrics), gradients = jax.value_and_grad(local_loss, has_aux=True)(predictions, truth)
    return metrics, gradients


@backend.jit
def split_loss_and_gradients(predictions, truth):
    """Each device's share, of inputs with a leading axis of devices."""
    of_device = jax.value_and_grad(partial(local_loss, axis_name="data"), has_aux=True)
    return jax.vmap(of_device, axis_name="data")(predictions, truth)


def assignments(truth):
    """Slot per prior of every image, by the loop."""
    return [
        oracles.atss(*[PRIORS, *image], topk=9, cell_scale=5.0, ignore_threshold=0.5)[0]
        for image in zip(truth.boxes, truth.valid, truth.ignore)
    ]


def box_of(logits, center):
    """Box around a centre, in strides: the expectation of each side's distribution."""
    sides = []
    for side in logits:
        shares = np.exp(side) / np.sum(np.exp(side))
        sides.append(sum(k * share for k, share in enumerate(shares)))
    left, top, right, bottom = sides
    return center[0] - left, center[1] - top, center[0] + right, center[1] + bottom


def loop(predictions, truth, slots, frozen):
    """The original's loss (gfl_head.py, in float64), one prior at a time.

    `frozen` are the predictions that qualities and weights come from: the gradient is that of
    `predictions` alone.
    """
    samples = weight_sum = 0.0
    focal = giou = distribution = 0.0
    for image, assigned in enumerate(slots):
        samples += max(sum(slot >= 0 for slot in assigned), 1)
        for prior, slot in enumerate(assigned):
            if slot == -2:
                continue
            logits, bins = predictions[0][image, prior], predictions[1][image, prior]
            stride = float(PRIORS.strides[prior])
            center = PRIORS.centers[prior] / stride
            quality = [0.0] * CLASSES
            if slot >= 0:
                target = truth.boxes[image, slot] / stride
                frozen_box = box_of(frozen[1][image, prior], center)
                quality[truth.labels[image, slot]] = oracles.iou(frozen_box, target)
                weight = 1 / (1 + np.exp(-max(frozen[0][image, prior])))
                weight_sum += weight
                giou += weight * (1 - oracles.giou(box_of(bins, center), target))
                distances = (*(center - target[:2]), *(target[2:] - center))
                for side, distance in zip(bins, distances):
                    clipped = min(max(float(distance), 0.0), REG_MAX - 0.1)
                    distribution += weight * oracles.distribution_focal(side, clipped) / 4
            focal += sum(map(oracles.quality_focal, logits, quality))
    weight_sum = weight_sum or 1.0
    parts = {
        "loss_qfl": WEIGHTS.quality_focal * focal / samples,
        "loss_bbox": WEIGHTS.giou * giou / weight_sum,
        "loss_dfl": WEIGHTS.distribution_focal * distribution / weight_sum,
    }
    return {"loss": sum(parts.values()), **parts}


@pytest.mark.parametrize("seed", range(2))
def test_loss_and_gradient_match_the_loop(seed):
    truth, predictions = batch_truth(), random_predictions(seed)
    metrics, gradients = loss_and_gradients(predictions, truth)
    slots = assignments(truth)
    exact = [leaf.astype(np.float64) for leaf in predictions]
    for name, expected in loop(exact, truth, slots, exact).items():
        assert float(metrics[name]) == pytest.approx(expected, rel=1e-5), name
    assert metrics["positives"] == sum(np.sum(slot >= 0) for slot in slots)

    # Along a random direction, by differences; once per leaf, as their scales differ.
    random = np.random.default_rng(seed)
    for moved in (0, 1):
        direction = [random.normal(0, 1, leaf.shape) * (i == moved) for i, leaf in enumerate(exact)]
        ends = [
            loop([a + step * d for a, d in zip(exact, direction)], truth, slots, exact)["loss"]
            for step in (1e-5, -1e-5)
        ]
        along = sum(np.sum(np.asarray(g, np.float64) * d) for g, d in zip(gradients, direction))
        assert along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_without_boxes_there_is_only_background():
    predictions = random_predictions(2)
    truth = batch_truth([([], [])] * len(IMAGES))
    metrics, gradients = loss_and_gradients(predictions, truth)
    # softplus(z) sigmoid(z)^2 and its derivative; one counted sample per image.
    z = predictions.class_logits.astype(np.float64)
    score, entropy = 1 / (1 + np.exp(-z)), np.logaddexp(0, z)
    factor = WEIGHTS.quality_focal / len(IMAGES)
    assert float(metrics["loss"]) == pytest.approx(factor * np.sum(entropy * score**2), rel=1e-5)
    expected = factor * (score**3 + 2 * entropy * score**2 * (1 - score))
    np.testing.assert_allclose(gradients.class_logits, expected, rtol=1e-4, atol=1e-9)
    assert not np.any(gradients.box_logits)
    assert metrics["positives"] == metrics["loss_bbox"] == metrics["loss_dfl"] == 0


@pytest.mark.parametrize("level", [-60.0, 60.0])
def test_gradients_are_finite_when_the_network_is_sure(level):
    predictions = jax.tree.map(lambda leaf: np.full_like(leaf, level), random_predictions(0))
    predictions.box_logits[..., ::2] = -level
    metrics, gradients = loss_and_gradients(predictions, batch_truth())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, gradients)))


def test_padding_anywhere_changes_nothing():
    truth, predictions = batch_truth(), random_predictions(3)
    random = np.random.default_rng(3)
    slots = SLOTS + 5
    at = np.sort(random.permutation(slots)[:SLOTS])
    low = random.uniform(0, 60, (len(IMAGES), slots, 2)).astype(np.float32)
    padded = GroundTruth(  # of slots that are padding, boxes and labels are noise
        boxes=np.concatenate([low, low + 30], axis=-1),
        labels=random.integers(0, CLASSES, (len(IMAGES), slots)).astype(np.int32),
        valid=np.zeros((len(IMAGES), slots), bool),
        ignore=np.zeros((len(IMAGES), slots), bool),
    )
    for leaf, original in zip(padded, truth):
        leaf[:, at] = original
    metrics, gradients = loss_and_gradients(predictions, truth)
    more_metrics, more_gradients = loss_and_gradients(predictions, padded)
    for name in metrics:
        assert float(more_metrics[name]) == pytest.approx(float(metrics[name]), rel=1e-6), name
    for leaf, more in zip(gradients, more_gradients):
        np.testing.assert_allclose(more, leaf, rtol=1e-5, atol=1e-8)


def test_who_learns_what():
    truth, predictions = batch_truth(), random_predictions(4)
    _, gradients = loss_and_gradients(predictions, truth)
    slots = np.stack(assignments(truth))
    assert all(np.sum(slots == kind) > 5 for kind in (-2, -1, 0))
    by_class = np.abs(gradients.class_logits).max(axis=-1)
    by_box = np.abs(gradients.box_logits).max(axis=(-1, -2))
    assert not np.any(by_class[slots == -2]) and np.all(by_class[slots != -2] > 0)
    assert not np.any(by_box[slots < 0]) and np.all(by_box[slots >= 0] > 0)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 1, 0, 3)])
def test_parts_of_a_batch_sum_to_the_whole(order):
    # In the second order the first device has no box at all.
    predictions = random_predictions(5)
    truth = batch_truth([IMAGES[i] for i in order])
    whole, gradients = loss_and_gradients(predictions, truth)
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), (predictions, truth))
    (_, parts), split = split_loss_and_gradients(*halves)
    for name in whole:
        assert float(jnp.sum(parts[name])) == pytest.approx(float(whole[name]), rel=1e-5), name
    for leaf, half in zip(gradients, split):
        np.testing.assert_allclose(half.reshape(leaf.shape), leaf, rtol=1e-4, atol=1e-8)


def test_bfloat16_predictions_are_judged_in_float32():
    truth = batch_truth()
    narrow = jax.tree.map(partial(jnp.asarray, dtype=jnp.bfloat16), random_predictions(6))
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), narrow)
    expected, _ = loss_and_gradients(wide, truth)
    _, metrics = backend.jit(local_loss)(narrow, truth)
    for name in expected:
        assert metrics[name].dtype == jnp.float32
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-6), name
