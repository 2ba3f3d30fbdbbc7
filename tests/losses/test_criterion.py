"""The criterion of NanoDet against a loop over images and priors, and what must not change it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax import boxes, config
from nanodet_jax.losses.assigners.atss import ATSS
from nanodet_jax.losses.assigners.dynamic_soft_label import DynamicSoftLabel
from nanodet_jax.losses.criterion import Criterion, build_criterion
from nanodet_jax.runtime import backend
from nanodet_jax.structures import GroundTruth
from tests import oracles
from tests.losses.builders import (
    CLASSES,
    EMPTY,
    IMAGES,
    REG_MAX,
    SIZE,
    WEIGHTS,
    batch_truth,
    box_of,
    random_predictions,
)

SLOTS = 6
PRIORS = boxes.make_priors(SIZE, (8, 16, 32), 0.5)
CRITERION = Criterion(
    priors=PRIORS,
    assigner=ATSS(topk=9, anchor_scale=5.0, ignore_threshold=0.5),
    weights=WEIGHTS,
)


def predict(seed):
    return random_predictions(len(IMAGES), PRIORS, np.random.default_rng(seed))


def local_loss(predictions, truth, axis_name=None):
    return CRITERION((predictions,), truth, axis_name=axis_name)


@backend.jit
def loss_and_gradients(predictions, truth):
    (_, metrics), gradients = jax.value_and_grad(local_loss, has_aux=True)(predictions, truth)
    return metrics, gradients


@backend.jit
def split_loss_and_gradients(predictions, truth):
    """Loss and gradients of each device, from inputs with a leading axis of devices."""
    of_device = jax.value_and_grad(partial(local_loss, axis_name="data"), has_aux=True)
    return jax.vmap(of_device, axis_name="data")(predictions, truth)


def assignments(truth):
    """Slot per prior of every image, by the loop."""
    return [
        oracles.atss(*[PRIORS, *image], topk=9, anchor_scale=5.0, ignore_threshold=0.5)[0]
        for image in zip(truth.boxes, truth.valid, truth.ignore)
    ]


def loop(predictions, truth, slots, frozen):
    """The original's loss (gfl_head.py, in float64), one prior at a time.

    `frozen` are the predictions that qualities and weights come from. The gradient is with respect
    to `predictions` alone.
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
    truth, predictions = batch_truth(), predict(seed)
    metrics, gradients = loss_and_gradients(predictions, truth)
    slots = assignments(truth)
    exact = [leaf.astype(np.float64) for leaf in predictions]
    for name, expected in loop(exact, truth, slots, exact).items():
        assert float(metrics[name]) == pytest.approx(expected, rel=1e-5), name
    assert float(metrics["positives"]) == sum(np.sum(slot >= 0) for slot in slots)

    # Finite differences along a random direction, separately for each leaf: their scales differ.
    random = np.random.default_rng(seed)
    for moved in (0, 1):
        direction = [random.normal(0, 1, leaf.shape) * (i == moved) for i, leaf in enumerate(exact)]
        ends = [
            loop([a + step * d for a, d in zip(exact, direction)], truth, slots, exact)["loss"]
            for step in (1e-5, -1e-5)
        ]
        along = sum(np.sum(np.asarray(g, np.float64) * d) for g, d in zip(gradients, direction))
        assert along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_loss_without_boxes_is_that_of_background_alone():
    predictions = predict(2)
    truth = batch_truth([EMPTY] * len(IMAGES))
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
def test_gradients_of_extreme_logits_are_finite(level):
    predictions = jax.tree.map(lambda leaf: np.full_like(leaf, level), predict(0))
    predictions.box_logits[..., ::2] = -level
    metrics, gradients = loss_and_gradients(predictions, batch_truth())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, gradients)))


def test_padding_slots_do_not_change_the_loss():
    truth, predictions = batch_truth(), predict(3)
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
    for leaf, original in zip(padded[:4], truth[:4]):
        leaf[:, at] = original
    metrics, gradients = loss_and_gradients(predictions, truth)
    more_metrics, more_gradients = loss_and_gradients(predictions, padded)
    for name in metrics:
        assert float(more_metrics[name]) == pytest.approx(float(metrics[name]), rel=1e-6), name
    for leaf, more in zip(gradients, more_gradients):
        np.testing.assert_allclose(more, leaf, rtol=1e-5, atol=1e-8)


def test_gradients_are_zero_for_ignored_priors_and_background_boxes():
    truth, predictions = batch_truth(), predict(4)
    _, gradients = loss_and_gradients(predictions, truth)
    slots = np.stack(assignments(truth))
    assert all(np.sum(slots == kind) > 5 for kind in (-2, -1, 0))
    by_class = np.abs(gradients.class_logits).max(axis=-1)
    by_box = np.abs(gradients.box_logits).max(axis=(-1, -2))
    assert not np.any(by_class[slots == -2]) and np.all(by_class[slots != -2] > 0)
    assert not np.any(by_box[slots < 0]) and np.all(by_box[slots >= 0] > 0)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 1, 0, 3)])
def test_losses_of_split_batches_sum_to_that_of_the_whole(order):
    # In the second order the first device has no box at all.
    predictions = predict(5)
    truth = batch_truth([IMAGES[i] for i in order])
    whole, gradients = loss_and_gradients(predictions, truth)
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), (predictions, truth))
    (_, parts), split = split_loss_and_gradients(*halves)
    for name in whole:
        assert float(jnp.sum(parts[name])) == pytest.approx(float(whole[name]), rel=1e-5), name
    for leaf, half in zip(gradients, split):
        np.testing.assert_allclose(half.reshape(leaf.shape), leaf, rtol=1e-4, atol=1e-8)


def test_loss_of_bfloat16_predictions_is_float32():
    truth = batch_truth()
    narrow = jax.tree.map(partial(jnp.asarray, dtype=jnp.bfloat16), predict(6))
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), narrow)
    expected, _ = loss_and_gradients(wide, truth)
    _, metrics = backend.jit(local_loss)(narrow, truth)
    for name in expected:
        assert metrics[name].dtype == jnp.float32
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-6), name


def test_build_criterion_gives_priors_weights_and_assigner_of_the_config():
    settings = config.Config(input_size=SIZE)
    built = build_criterion(settings)
    np.testing.assert_array_equal(built.priors.centers, PRIORS.centers)
    assert built.weights == settings.loss
    assert built.assigner == ATSS(topk=9, anchor_scale=5.0, ignore_threshold=0.5)
    settings.assigner = config.Assigner("dynamic_soft_label", topk=13)
    assert build_criterion(settings).assigner == DynamicSoftLabel(
        topk=13, iou_factor=3.0, ignore_threshold=0.5, priors_of_any_box=True
    )
