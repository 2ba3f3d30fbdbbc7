"""1,000 classes with long names, and 500 boxes in an image."""

import json
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax import config as configs
from nanodet_jax import train_and_evaluate, visualize
from nanodet_jax.data.open_source import open_source
from nanodet_jax.data.pipeline import count_slots, training_batches
from nanodet_jax.evaluation import evaluate
from nanodet_jax.evaluation.coco_metrics import format_table, to_json
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.losses.criterion import build_criterion
from nanodet_jax.structures import GroundTruth, Predictions
from nanodet_jax.terminal import NAME_LIMIT
from tests.attack.coco_files import SIDE, config_of, write
from tests.training.test_loop import one_device as one_device

CLASSES, BOXES = 1000, 500


def long_name(index):
    """Return a name of the maximum length, in letters that json writes as six bytes each."""
    return f"{index:06d} " + "ü" * (NAME_LIMIT - 7)


@pytest.mark.long
def test_thousand_classes_with_long_names_train_evaluate_and_resume(one_device, tmp_path):
    write(tmp_path, classes=CLASSES, images=8, boxes=3, name=long_name)
    config, workdir = config_of(tmp_path), tmp_path / "run"
    metrics = train_and_evaluate(config, workdir)
    assert list(metrics["per_class"]) == [long_name(index) for index in range(CLASSES)]
    assert train_and_evaluate(config, workdir) == metrics  # all of it is read back
    found = Checkpoints(workdir, writing=False)
    assert found.metrics(2) == metrics
    found.close()
    scored = evaluate.evaluate(config, workdir, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == to_json(scored)
    lines = format_table(metrics).splitlines()
    assert sum(line.startswith("000") for line in lines) == CLASSES
    assert (workdir / "pictures" / "train_0000000.jpg").stat().st_size > 1000


def test_batch_contains_all_of_five_hundred_boxes(tmp_path):
    write(tmp_path, classes=CLASSES, images=4, boxes=BOXES, name=str)
    config = config_of(tmp_path)
    config.augment = configs.Augment()
    source = open_source(config, "train")
    slots, over = count_slots(source, 0)
    assert (slots, over) == (BOXES, [])
    batch = next(training_batches(source, config, slots))
    assert batch.ground_truth.valid.sum() == 4 * BOXES
    slots, over = count_slots(source, 100)
    assert (slots, len(over), over[0][1]) == (100, 4, BOXES - 100)


@pytest.mark.parametrize("assigner", ["atss", "dynamic_soft_label"])
def test_loss_of_five_hundred_boxes_does_not_depend_on_padding(assigner):
    config = configs.Config(input_size=(SIDE, SIDE))
    config.model.num_classes = CLASSES
    config.assigner.name = assigner
    criterion = build_criterion(config)
    count, rng = len(criterion.priors.centers), np.random.default_rng(1)
    predictions = Predictions(
        jnp.asarray(rng.normal(-4, 1, (1, count, CLASSES)), jnp.float32),
        jnp.asarray(rng.normal(0, 1, (1, count, 4, config.model.reg_max + 1)), jnp.float32),
    )
    corners = rng.uniform(0, SIDE, (1, BOXES, 2, 2))
    boxes = np.concatenate([corners.min(axis=2), corners.max(axis=2)], axis=-1)
    labels = rng.integers(0, CLASSES, (1, BOXES))

    def loss(slots):
        extra = slots - BOXES
        truth = GroundTruth(
            boxes=np.pad(boxes, ((0, 0), (0, extra), (0, 0))).astype(np.float32),
            labels=np.pad(labels, ((0, 0), (0, extra))).astype(np.int32),
            valid=np.arange(slots)[None] < BOXES,
            ignore=np.zeros((1, slots), bool),
        )
        return jax.jit(criterion)((predictions,), truth)

    (exact, parts), (padded, padded_parts) = loss(BOXES), loss(BOXES + 77)
    assert np.isfinite(exact) and parts["positives"] > 0
    assert parts["positives"] == padded_parts["positives"]
    np.testing.assert_allclose(exact, padded, rtol=1e-5)


def test_picture_of_five_hundred_boxes_with_long_names_is_drawn_within_seconds():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 320, (BOXES, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    names = [long_name(index) for index in range(CLASSES)]
    labels = rng.integers(0, CLASSES, BOXES)
    image = np.full((320, 320, 3), 99, np.uint8)
    real, calls = cv2.getTextSize, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cv2, "getTextSize", lambda *args: calls.append(0) or real(*args))
        started = time.monotonic()
        drawn = visualize.draw_ground_truth(image, boxes, labels, names)
        seconds = time.monotonic() - started
    assert (drawn != image).any()
    assert len(calls) <= 12 * BOXES  # a search for the letters that fit takes 8, one by one 170
    assert seconds < 5
