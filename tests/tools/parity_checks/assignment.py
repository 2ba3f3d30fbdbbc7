"""Checks of assigners, losses and whole-head losses against fixtures."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nanodet_jax import boxes, config
from nanodet_jax.losses import functional
from nanodet_jax.losses.assigners import atss
from nanodet_jax.losses.assigners.atss import ATSS
from nanodet_jax.losses.assigners.dynamic_soft_label import DynamicSoftLabel
from nanodet_jax.losses.criterion import Criterion, build_assigner
from nanodet_jax.models.heads.nanodet_head import split_logits
from nanodet_jax.runtime import backend
from nanodet_jax.structures import GroundTruth, Predictions
from tests.losses.builders import ground_truth, stack
from tests.tools.parity_checks.comparison import Comparisons, Worst, absolute, of_scale, relative

STRIDES, PLUS_STRIDES = (8, 16, 32), (8, 16, 32, 64)
PRIOR_OFFSET, PLUS_OFFSET = 0.5, 0.0


def batch_of(path: Path, fixture, count: int) -> GroundTruth:
    """Return the ground truth of `count` images, stored as gt_boxes_i and gt_labels_i."""
    images = [(fixture[f"gt_boxes_{i}"], fixture[f"gt_labels_{i}"]) for i in range(count)]
    most = max(max(len(gt_boxes) for gt_boxes, _ in images), 1)
    return stack(ground_truth(gt_boxes, labels=labels, slots=most) for gt_boxes, labels in images)


@partial(jax.jit, static_argnames=("size", "ignore_threshold"))
def run_atss(truth, size, ignore_threshold):
    priors = boxes.make_priors(size, STRIDES, PRIOR_OFFSET)
    unused = Predictions(
        jnp.zeros((len(priors.strides), 1)), jnp.zeros((len(priors.strides), 4, 8))
    )
    assigner = ATSS(topk=9, anchor_scale=5.0, ignore_threshold=ignore_threshold)
    return assigner.assign(unused, truth, priors)


def check_atss(path: Path) -> Worst:
    """Compare the index of every prior, in every image of the file."""
    compare = Comparisons()
    with np.load(path) as fixture:
        cases = sorted({int(key.split("/")[0]) for key in fixture if "/" in key})
        case_slots = max(
            len(fixture[f"{k}/gt_boxes"])
            + (len(fixture[f"{k}/ignore_boxes"]) if f"{k}/ignore_boxes" in fixture else 0)
            for k in cases
        )
        for k in cases:
            ignore = fixture.get(f"{k}/ignore_boxes")
            truth = ground_truth(
                fixture[f"{k}/gt_boxes"],
                () if ignore is None else ignore,
                fixture[f"{k}/gt_labels"],
                case_slots,
            )
            size = tuple(int(side) for side in fixture[f"{k}/size"])
            targets = run_atss(truth, size, 0.0 if ignore is None else 0.5)
            compare.equal(f"case {k}: index", targets.gt_index, fixture[f"{k}/gt_index"])
            if f"{k}/overlap" in fixture:  # not recorded with ignore regions
                overlap = fixture[f"{k}/overlap"]
                compare.near(f"case {k}: overlap", targets.overlap, absolute(overlap, 1e-5))
    return compare.worst()


@partial(jax.jit, static_argnames="size")
def run_dynamic(truth, logits, predicted, size):
    priors = boxes.make_priors(size, PLUS_STRIDES, PLUS_OFFSET)
    assigner = DynamicSoftLabel(
        topk=13, iou_factor=3.0, ignore_threshold=0.0, priors_of_any_box=True
    )
    return assigner.assign_decoded(logits, predicted, truth, priors)


def check_dynamic(path: Path) -> Worst:
    """Compare the index of every prior, for recorded boxes and for logits from a recorded seed."""
    compare = Comparisons()
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    cases = sorted({int(key.split("/")[0]) for key in fixture if "/" in key})
    case_slots = max(len(fixture[f"{k}/gt_boxes"]) for k in cases)
    for k in cases:
        size = tuple(int(side) for side in fixture[f"{k}/size"])
        priors = boxes.make_priors(size, PLUS_STRIDES, PLUS_OFFSET)
        recorded = fixture[f"{k}/priors"]
        compare.equal(f"case {k}: centres", priors.centers, recorded[:, :2])
        compare.equal(f"case {k}: strides", priors.strides, recorded[:, 2])
        random = np.random.RandomState(int(fixture[f"{k}/logit_seed"]))
        logits = (random.randn(len(recorded), 80) * 1.5 - 3).astype(np.float32)
        checksum = np.sum(logits, dtype=np.float64)
        compare.near(f"case {k}: logits", checksum, relative(fixture[f"{k}/logit_checksum"], 1e-6))
        truth = ground_truth(
            fixture[f"{k}/gt_boxes"], labels=fixture[f"{k}/gt_labels"], slots=case_slots
        )
        targets = run_dynamic(truth, logits, fixture[f"{k}/decoded"], size)
        compare.equal(f"case {k}: index", targets.gt_index, fixture[f"{k}/gt_index"])
        # Without a box the file contains 0 or -1e8, depending on the kind of background.
        overlap = np.where(fixture[f"{k}/gt_index"] >= 0, fixture[f"{k}/overlap"], -1)
        compare.near(f"case {k}: overlap", targets.overlap, absolute(overlap, 1e-5))
    return compare.worst()


def check_trace(path: Path) -> Worst:
    """Compare every number of the assignments computed by hand, which are rounded to 1e-4."""
    trace = json.loads(path.read_text())
    compare = Comparisons()
    size = tuple(trace["input"])
    priors = boxes.make_priors(size, tuple(trace["strides"]), PRIOR_OFFSET)
    anchors = jnp.asarray(boxes.anchors(priors, float(trace["cell_scale"])))
    for k, case in enumerate(trace["cases"]):
        gt_boxes = np.asarray(case["gt_boxes"], np.float32)
        truth = ground_truth(gt_boxes, labels=case["gt_labels"], slots=max(len(gt_boxes), 1))
        targets = run_atss(truth, size, 0.0)
        gt_index = np.asarray(targets.gt_index)
        positive = np.flatnonzero(gt_index >= 0)
        compare.equal(f"case {k}: positive", positive, case["positive"])
        compare.equal(f"case {k}: index", gt_index[positive], case["gt_index"])
        if "candidates" not in case:
            continue
        centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
        distances = np.linalg.norm(centers[:, None] - priors.centers[None], axis=-1)
        candidates, _ = atss.nearest_per_level(
            jnp.asarray(distances), priors.level_sizes, trace["topk"]
        )
        candidates = np.asarray(candidates)
        compare.equal(f"case {k}: candidates", candidates.T, case["candidates"])
        overlaps = np.take_along_axis(
            np.asarray(boxes.iou(jnp.asarray(gt_boxes)[:, None], anchors[None])), candidates, axis=1
        )
        compare.near(f"case {k}: overlaps", overlaps.T, absolute(case["overlaps"], 6e-5))
        mean, std = overlaps.mean(axis=1), overlaps.std(axis=1, ddof=1)
        compare.near(f"case {k}: mean", mean, absolute(case["mean"], 6e-5))
        compare.near(f"case {k}: std", std, absolute(case["std"], 6e-5))
        if "threshold" in case:
            compare.near(f"case {k}: threshold", mean + std, absolute(case["threshold"], 6e-5))
            above = overlaps >= (mean + std)[:, None]
            compare.equal(f"case {k}: above", above.T, case["above_threshold"])
    _check_shapes(compare, trace, size)
    return compare.worst()


def _check_shapes(compare: Comparisons, trace, size) -> None:
    from nanodet_jax.models.nanodet import build_model

    model = build_model(config.Model(num_classes=trace["shapes"]["cls"][0][0]))
    image = jnp.zeros((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    _, seen = jax.eval_shape(
        lambda v: model.apply(v, image, capture_intermediates=True, mutable=["intermediates"]),
        variables,
    )
    seen = seen["intermediates"]
    for part in ("backbone", "neck"):
        shapes = [(x.shape[3], *x.shape[1:3]) for x in seen[part]["__call__"][0]]
        compare.equal(f"shapes of {part}", shapes, trace["shapes"][part])
    predictions = seen["__call__"][0]
    for part, leaf in (("cls", predictions.class_logits), ("reg", predictions.box_logits)):
        expected = trace["shapes"][part]
        compare.equal(f"priors of {part}", leaf.shape[1], sum(h * w for _, h, w in expected))
        compare.equal(f"channels of {part}", int(np.prod(leaf.shape[2:])), expected[0][0])


def check_losses(path: Path) -> Worst:
    """Compare values and gradients of the three losses, and the overlaps that they use."""
    compare = Comparisons()
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    num_classes = fixture["qfl_logits"].shape[1]
    labels = fixture["qfl_labels"]
    is_object = (labels >= 0) & (labels < num_classes)
    quality = np.zeros(fixture["qfl_logits"].shape, np.float32)
    quality[is_object, labels[is_object]] = fixture["qfl_scores"][is_object]
    soft_labels = jnp.asarray(quality)

    def qfl(logits):
        per_prior = jnp.sum(functional.quality_focal(logits, soft_labels), axis=-1)
        return jnp.sum(per_prior * fixture["qfl_weight"]) / fixture["qfl_avg_factor"]

    def dfl(logits):
        per_side = functional.distribution_focal(logits, jnp.asarray(fixture["dfl_target"]))
        weighted = jnp.sum(per_side * fixture["dfl_weight"]) / fixture["dfl_avg_factor"]
        return fixture["dfl_loss_weight"] * weighted

    def giou(predicted):
        per_box = functional.giou_loss(predicted, jnp.asarray(fixture["giou_target"]))
        weighted = jnp.sum(per_box * fixture["giou_weight"]) / fixture["giou_avg_factor"]
        return fixture["giou_loss_weight"] * weighted

    for name, function, argument in (
        ("qfl", qfl, "qfl_logits"),
        ("dfl", dfl, "dfl_logits"),
        ("giou", giou, "giou_pred"),
    ):
        value, gradient = jax.value_and_grad(function)(jnp.asarray(fixture[argument]))
        compare.near(name, value, relative(fixture[name], 1e-5))
        compare.near(f"{name} gradient", gradient, of_scale(fixture[f"{name}_grad"], 1e-4))
    pair = jnp.asarray(fixture["giou_pred"]), jnp.asarray(fixture["giou_target"])
    compare.near("iou", boxes.iou(*pair), absolute(fixture["iou"], 1e-5))
    compare.near("giou value", boxes.giou(*pair), absolute(fixture["giou_value"], 1e-5))
    compare.near("iof", boxes.iof(*pair), absolute(fixture["iof"], 1e-5))
    return compare.worst()


def head_checks(path: Path) -> Iterator[tuple[str, object]]:
    """Yield a check for each head in the file."""
    with np.load(path) as file:
        names = sorted({key.split("/")[0] for key in file if "/" in key})
    for name in names:
        ours = re.fullmatch(r"nanodet_(head|plus_head|plus_head_aux)(_empty)?", name)
        yield name, partial(_check_head, path, name) if ours else None


CHECKS = {"assign_atss": check_atss, "assign_dsl": check_dynamic}


def _check_head(path: Path, name: str) -> Worst:
    compare = Comparisons()
    size = (320, 320)
    with np.load(path) as file:
        fixture = {key: file[key] for key in file}
    plus = "plus" in name
    if plus:
        priors = boxes.make_priors(size, PLUS_STRIDES, PLUS_OFFSET)
        assigner = config.Assigner("dynamic_soft_label", topk=13, ignore_threshold=0.0)
    else:
        priors = boxes.make_priors(size, STRIDES, PRIOR_OFFSET)
        assigner = config.Assigner(ignore_threshold=0.0)
    count = sum(key.startswith("gt_boxes_") for key in fixture)
    random = np.random.RandomState(int(fixture["preds_seed"]))

    def draw():
        logits = random.randn(count, len(priors.strides), 112)
        logits[..., :80] = logits[..., :80] * 1.5 - 3
        return jnp.asarray(logits, jnp.float32)

    branches = [draw()]
    if "_aux" in name:
        branches.append(draw())
    empty = name.endswith("_empty")
    truth = batch_of(path, fixture, count)
    if empty:
        truth = jax.tree.map(np.zeros_like, truth)

    criterion = Criterion(priors, build_assigner(assigner, config.Compat()), config.Loss())

    def loss(branches):
        return criterion(tuple(split_logits(logits, 80) for logits in branches), truth)

    score = backend.jit(jax.value_and_grad(loss, has_aux=True))
    (value, parts), gradients = score(branches)
    if empty and not plus:
        # The original returns a constant 0 without gradients here, so it cannot be compared. Only
        # the background is learned, so the loss is this sum divided by the number of images.
        z = np.asarray(branches[0][..., :80], np.float64)
        expected = np.sum(np.logaddexp(0, z) / (1 + np.exp(-z)) ** 2) / count
        compare.near("loss of background alone", value, relative(expected, 1e-5))
        compare.equal("finite gradient", np.isfinite(gradients[0]).all(), True)
        return compare.worst()
    for key, expected in fixture.items():
        match key.removeprefix(f"{name}/").split("_"):
            case ["loss"]:
                compare.near("loss", value, relative(expected, 1e-5))
            case ["loss", _] | ["aux", "loss", _] if key.startswith(f"{name}/"):
                part = key.removeprefix(f"{name}/")
                compare.near(part, parts[part], relative(expected, 1e-5))
    for prefix, gradient in zip(("", "aux_"), gradients):
        if f"{name}/{prefix}grad_norm" in fixture:
            norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
            expected = relative(fixture[f"{name}/{prefix}grad_norm"], 1e-4)
            compare.near(f"{prefix}gradient norm", norm, expected)
        if f"{name}/{prefix}grad" in fixture:
            summed = jnp.sum(gradient, axis=-1)
            expected = of_scale(fixture[f"{name}/{prefix}grad"], 1e-4)
            compare.near(f"{prefix}gradient", summed, expected)
    return compare.worst()
