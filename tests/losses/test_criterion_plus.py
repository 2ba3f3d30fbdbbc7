"""The criterion of NanoDet-Plus: a head and a guidance, which assigns for both."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from nanodet_jax import boxes
from nanodet_jax.losses.assigners.dynamic_soft_label import DynamicSoftLabel
from nanodet_jax.losses.criterion import Criterion
from nanodet_jax.runtime import backend
from nanodet_jax.structures import GroundTruth
from tests import oracles
from tests.losses.builders import (
    CLASSES,
    EMPTY,
    IMAGES,
    PARTS,
    REG_MAX,
    SIZE,
    WEIGHTS,
    batch_truth,
    box_of,
    random_predictions,
)

# Eight images, one for each device where the batch is split: some have many boxes, some none.
PLUS_PRIORS = boxes.make_priors(SIZE, (8, 16, 32, 64), 0.0)
PLUS_IMAGES = (
    *IMAGES,
    EMPTY,
    ([], [[0, 0, 40, 64]]),
    ([[9, 9, 15, 15], [0, 64, 20, 64], [17, 17, 23, 22]], []),  # without a prior inside
    EMPTY,
)
PLUS_PARTS = (*PARTS, *("aux_" + name for name in PARTS))
RULES = {"any": True, "own": False}  # Compat.priors_of_any_box
CRITERIA = {
    rule: Criterion(
        priors=PLUS_PRIORS,
        assigner=DynamicSoftLabel(
            topk=13, iou_factor=3.0, ignore_threshold=0.5, priors_of_any_box=of_any_box
        ),
        weights=WEIGHTS,
    )
    for rule, of_any_box in RULES.items()
}


def random_branches(seed):
    random = np.random.default_rng(seed)
    return tuple(
        random_predictions(len(PLUS_IMAGES), PLUS_PRIORS, random) for _ in ("head", "guidance")
    )


def plus_loss(branches, truth, rule="any", axis_name=None):
    return CRITERIA[rule](branches, truth, axis_name=axis_name)


@backend.jit
def plus_loss_and_gradients(branches, truth):
    (_, metrics), gradients = jax.value_and_grad(plus_loss, has_aux=True)(branches, truth)
    return metrics, gradients


@backend.jit_once  # as for all functions below that are called only a few times
def own_loss_and_gradients(branches, truth):
    of_branches = jax.value_and_grad(partial(plus_loss, rule="own"), has_aux=True)
    (_, metrics), gradients = of_branches(branches, truth)
    return metrics, gradients


@backend.jit_once
def plus_targets(branches, truth):
    return jax.vmap(CRITERIA["any"].assign)(branches, truth)


def expected_targets(guidance, truth, rule="any"):
    """(slot per prior, its overlap) of every image, by the loop."""
    targets = []
    for class_logits, box_logits, *image in zip(*guidance, *truth[:4]):
        predicted = [
            stride * np.array(box_of(bins, center / stride))
            for bins, center, stride in zip(box_logits, PLUS_PRIORS.centers, PLUS_PRIORS.strides)
        ]
        of_image = oracles.dynamic_soft_label(
            PLUS_PRIORS,
            GroundTruth(*image),
            class_logits,
            np.array(predicted),
            topk=13,
            iou_factor=3.0,
            ignore_threshold=0.5,
            priors_of_any_box=RULES[rule],
        )
        targets.append(of_image)
    return targets


def plus_loop(branches, truth, targets, frozen):
    """The loss of NanoDet-Plus in float64, one prior at a time; `frozen` as in `loop`.

    Returns:
      The metrics, and the sum of weights of each branch.
    """
    positives = sum(np.sum(slots >= 0) for slots, _ in targets)
    parts, weight_sums = {}, []
    for prefix, predictions, (frozen_logits, _) in zip(("", "aux_"), branches, frozen):
        focal = giou = distribution = weight_sum = 0.0
        for image, (slots, overlaps) in enumerate(targets):
            for prior, slot in enumerate(slots):
                if slot == -2:
                    continue
                logits, bins = predictions[0][image, prior], predictions[1][image, prior]
                quality = [0.0] * CLASSES
                if slot >= 0:
                    quality[truth.labels[image, slot]] = overlaps[prior]
                    target, center = truth.boxes[image, slot], PLUS_PRIORS.centers[prior]
                    stride = float(PLUS_PRIORS.strides[prior])
                    box = [side * stride for side in box_of(bins, center / stride)]
                    weight = 1 / (1 + np.exp(-max(frozen_logits[image, prior])))
                    weight_sum += weight
                    giou += weight * (1 - oracles.giou(box, target))
                    distances = (*(center - target[:2]), *(target[2:] - center))
                    for side, distance in zip(bins, distances):
                        clipped = min(max(float(distance) / stride, 0.0), REG_MAX - 0.1)
                        distribution += weight * oracles.distribution_focal(side, clipped) / 4
                focal += sum(map(oracles.quality_focal, logits, quality))
        divisor = max(weight_sum, 1.0)
        parts |= {
            prefix + "loss_qfl": WEIGHTS.quality_focal * focal / max(positives, 1),
            prefix + "loss_bbox": WEIGHTS.giou * giou / divisor,
            prefix + "loss_dfl": WEIGHTS.distribution_focal * distribution / divisor,
        }
        weight_sums.append(weight_sum)
    return {"loss": sum(parts.values()), **parts, "positives": positives}, weight_sums


def shifted(branches, head, guidance):
    """Branches with higher or lower logits for all classes."""
    return tuple(
        branch._replace(class_logits=branch.class_logits + np.float32(shift))
        for branch, shift in zip(branches, (head, guidance))
    )


# The sums of weights are large in both branches, below 1 in one branch, or below 1 in both.
@pytest.mark.parametrize(
    "rule, shift", [("any", (0, 0)), ("own", (0, -7)), ("any", (-7, 0)), ("own", (-6, -8))]
)
def test_loss_and_gradient_match_the_loop(rule, shift):
    truth, branches = batch_truth(PLUS_IMAGES), shifted(random_branches(0), *shift)
    step = {"any": plus_loss_and_gradients, "own": own_loss_and_gradients}[rule]
    metrics, gradients = step(branches, truth)
    exact = [[leaf.astype(np.float64) for leaf in branch] for branch in branches]
    targets = expected_targets(exact[1], truth, rule)
    expected, weight_sums = plus_loop(exact, truth, targets, exact)
    assert [weight < 1 for weight in weight_sums] == [moved < 0 for moved in shift]
    assert set(metrics) == set(expected) == {"loss", "positives", *PLUS_PARTS}
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-5), name
    assert float(metrics["loss"]) == pytest.approx(
        sum(map(float, (metrics[n] for n in PLUS_PARTS)))
    )

    # Finite differences along a random direction, separately for each leaf. Slots and overlaps are
    # fixed: no gradient enters the assignment.
    random = np.random.default_rng(0)
    for moved in range(4):
        directions = [
            [
                random.normal(0, 1, leaf.shape) * (2 * i + j == moved)
                for j, leaf in enumerate(branch)
            ]
            for i, branch in enumerate(exact)
        ]
        ends = []
        for step in (1e-5, -1e-5):
            there = [[leaf + step * d for leaf, d in zip(*pair)] for pair in zip(exact, directions)]
            ends.append(plus_loop(there, truth, targets, exact)[0]["loss"])
        along = sum(
            np.sum(np.asarray(g, np.float64) * d)
            for pair in zip(gradients, directions)
            for g, d in zip(*pair)
        )
        assert along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_targets_depend_on_the_guidance_alone():
    truth = batch_truth(PLUS_IMAGES)
    (head, guidance), (other_head, other_guidance) = random_branches(1), random_branches(2)
    targets = plus_targets((head, guidance), truth)
    for image, (slots, overlaps) in enumerate(expected_targets(guidance, truth)):
        np.testing.assert_array_equal(targets.gt_index[image], slots)
        np.testing.assert_allclose(targets.overlap[image], overlaps, rtol=1e-4, atol=1e-6)
    for leaf, same in zip(targets, plus_targets((other_head, guidance), truth)):
        np.testing.assert_array_equal(leaf, same)
    moved = (
        guidance._replace(class_logits=other_guidance.class_logits),
        guidance._replace(box_logits=other_guidance.box_logits),
    )
    for guide in moved:  # by its classes as well as by its boxes
        changed = plus_targets((head, guide), truth)
        assert np.sum(np.asarray(changed.gt_index) != targets.gt_index) > 5


def test_soft_labels_of_both_branches_are_those_of_the_guidance():
    # If the head's boxes move, the soft labels of its classes stay the same.
    truth = batch_truth(PLUS_IMAGES)
    (head, guidance), (other, _) = random_branches(3), random_branches(4)
    before, gradients = plus_loss_and_gradients((head, guidance), truth)
    moved = head._replace(box_logits=other.box_logits)
    after, moved_gradients = plus_loss_and_gradients((moved, guidance), truth)
    for name in ("loss_qfl", "positives", *("aux_" + part for part in PARTS)):
        assert float(after[name]) == pytest.approx(float(before[name]), rel=1e-6), name
    for name in ("loss_bbox", "loss_dfl"):
        assert float(after[name]) != pytest.approx(float(before[name]), rel=1e-3), name
    np.testing.assert_allclose(
        moved_gradients[0].class_logits, gradients[0].class_logits, rtol=1e-5, atol=1e-8
    )
    # Two branches with equal predictions have equal losses.
    same = plus_loss_and_gradients((guidance, guidance), truth)[0]
    for name in PARTS:
        assert float(same[name]) == pytest.approx(float(same["aux_" + name]), rel=1e-6), name


def test_gradient_of_a_branch_is_that_of_its_own_losses():
    def by_branch(branches, truth):
        metrics = plus_loss(branches, truth)[1]
        return [sum(metrics[prefix + name] for name in PARTS) for prefix in ("", "aux_")]

    of_head, of_guidance = backend.jit_once(jax.jacrev(by_branch))(
        random_branches(5), batch_truth(PLUS_IMAGES)
    )
    for own, other in (of_head, reversed(of_guidance)):
        assert all(np.any(leaf) and np.isfinite(leaf).all() for leaf in own)
        assert not any(np.any(leaf) for leaf in other)


def test_loss_without_boxes_is_that_of_background_alone():
    branches = random_branches(6)
    truth = batch_truth([EMPTY] * len(PLUS_IMAGES))
    metrics, gradients = plus_loss_and_gradients(branches, truth)
    for prefix, predictions, gradient in zip(("", "aux_"), branches, gradients):
        # softplus(z) sigmoid(z)^2 and its derivative, undivided: one sample for the whole batch.
        z = predictions.class_logits.astype(np.float64)
        score, entropy = 1 / (1 + np.exp(-z)), np.logaddexp(0, z)
        factor = WEIGHTS.quality_focal
        focal = float(metrics[prefix + "loss_qfl"])
        assert focal == pytest.approx(factor * np.sum(entropy * score**2), rel=1e-5)
        assert metrics[prefix + "loss_bbox"] == metrics[prefix + "loss_dfl"] == 0
        expected = factor * (score**3 + 2 * entropy * score**2 * (1 - score))
        np.testing.assert_allclose(gradient.class_logits, expected, rtol=1e-4, atol=1e-9)
        assert not np.any(gradient.box_logits)
    total = float(metrics["loss_qfl"]) + float(metrics["aux_loss_qfl"])
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-6)
    assert metrics["positives"] == 0


@pytest.mark.parametrize("level", [-60.0, 60.0])
def test_gradients_of_extreme_logits_are_finite(level):
    branches = jax.tree.map(lambda leaf: np.full_like(leaf, level), random_branches(0))
    for branch in branches:
        branch.box_logits[..., ::2] = -level
    branches[1].box_logits[:, ::3] = level * np.linspace(1, -1, REG_MAX + 1, dtype=np.float32)
    metrics, gradients = plus_loss_and_gradients(branches, batch_truth(PLUS_IMAGES))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, gradients)))
    assert metrics["positives"] > 0


def test_gradients_are_zero_for_ignored_priors_and_background_boxes():
    truth, branches = batch_truth(PLUS_IMAGES), random_branches(7)
    _, gradients = plus_loss_and_gradients(branches, truth)
    slots = np.stack([slots for slots, _ in expected_targets(branches[1], truth)])
    assert all(np.sum(slots == kind) > 5 for kind in (-2, -1, 0))
    for gradient in gradients:  # ignored priors in neither branch
        by_class = np.abs(gradient.class_logits).max(axis=-1)
        by_box = np.abs(gradient.box_logits).max(axis=(-1, -2))
        assert not np.any(by_class[slots == -2]) and np.all(by_class[slots != -2] > 0)
        assert not np.any(by_box[slots < 0]) and np.all(by_box[slots >= 0] > 0)


@pytest.fixture(scope="module")
def plus_on_eight_devices():
    if jax.local_device_count() < 8:
        pytest.skip("needs 8 devices, and XLA_FLAGS was set otherwise")

    def of_device(branches, truth):
        loss = partial(plus_loss, axis_name="data")
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(branches, truth)
        return jax.tree.map(lambda value: value[None], metrics), gradients

    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,), devices=jax.local_devices()[:8])
    spec = PartitionSpec("data")
    return backend.jit_once(jax.shard_map(of_device, mesh=mesh, in_specs=spec, out_specs=spec))


# Boxes on all but four devices, all on one device, hardly any weight on any, and no boxes.
@pytest.mark.parametrize(
    "images, shift",
    [
        (PLUS_IMAGES, 0),
        ((EMPTY, EMPTY, PLUS_IMAGES[3], *[EMPTY] * 5), 0),
        (PLUS_IMAGES, -8),
        ([EMPTY] * 8, 0),
    ],
)
def test_losses_of_eight_devices_sum_to_that_of_one(plus_on_eight_devices, images, shift):
    truth, branches = batch_truth(images), shifted(random_branches(8), shift, shift)
    whole, gradients = plus_loss_and_gradients(branches, truth)
    parts, split = jax.device_get(plus_on_eight_devices(branches, truth))
    for name in whole:
        assert float(np.sum(parts[name])) == pytest.approx(float(whole[name]), rel=1e-5), name
    for leaf, over_devices in zip(jax.tree.leaves(gradients), jax.tree.leaves(split)):
        np.testing.assert_allclose(over_devices, leaf, rtol=1e-4, atol=1e-8)


def test_loss_of_bfloat16_predictions_is_float32():
    truth = batch_truth(PLUS_IMAGES)
    narrow = jax.tree.map(partial(jnp.asarray, dtype=jnp.bfloat16), random_branches(9))
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), narrow)
    expected, _ = plus_loss_and_gradients(wide, truth)
    _, metrics = backend.jit_once(plus_loss)(narrow, truth)
    for name in expected:
        assert metrics[name].dtype == jnp.float32
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-5), name
