"""Doctor: sizes at the input, priors per box, and findings from numbers."""

import numpy as np
import pytest

from nanodet_jax import config as configs
from nanodet_jax.config import Config
from nanodet_jax.data.records import make_record
from nanodet_jax.doctor.findings import (
    Lost,
    of_classes,
    of_empty,
    of_priors,
    of_schedule,
    of_sizes,
    shifted_iou,
)
from nanodet_jax.doctor.geometry import Objects, objects_at_input, priors_per_object, sample
from nanodet_jax.models.nanodet import priors_of


def record(boxes, ignore=(), size=(128, 256)):
    ignore = list(ignore) or [False] * len(boxes)
    return make_record(1, "a.png", b"", size, boxes, range(len(boxes)), ignore, [1] * len(boxes))


BOXES = [[10, 20, 50, 60], [0, 0, 256, 128], [100, 100, 101, 101]]


@pytest.mark.parametrize(
    ("keep_ratio", "expected"),
    [(False, [[10, 20], [64, 64], [0.25, 0.5]]), (True, [[10, 10], [64, 32], [0.25, 0.25]])],
)
def test_objects_at_input_have_the_sides_of_the_resized_image(keep_ratio, expected):
    config = Config(input_size=(64, 64))
    config.data.keep_ratio = keep_ratio
    found = objects_at_input([record(BOXES), record([]), record(BOXES[:2], [True, False])], config)
    np.testing.assert_allclose(found.sides, [*expected, expected[1]], rtol=1e-5)
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 1])
    np.testing.assert_allclose(found.size[0], np.sqrt(np.prod(expected[0])), rtol=1e-5)
    np.testing.assert_allclose(found.shorter, [min(side) for side in found.sides], rtol=1e-6)


def test_priors_per_object_of_atss_are_at_most_those_inside_the_box():
    """The counts do not depend on other images."""
    config = Config(input_size=(64, 64))
    centers = priors_of(config.model, config.input_size).centers
    boxes = [[8.0, 8, 40, 40], [2, 2, 62, 62], [30, 30, 33, 33], [9, 9, 10, 10]]
    records = [record([box], size=(64, 64)) for box in boxes]
    counts = priors_per_object(records, config, 4)
    inside = [
        np.sum(np.all((centers > box[:2]) & (centers < box[2:]), axis=1)) for box in np.array(boxes)
    ]
    assert (counts <= inside).all()
    assert counts[0] > 0 and counts[1] > 0
    assert counts[3] == inside[3] == 0  # it contains no center, at 4, 12, ...
    together = [record([]), *records, record([boxes[0]], [True], size=(64, 64))]
    np.testing.assert_array_equal(priors_per_object(together, config, 4), counts)


def test_priors_per_object_of_dynamic_soft_label_is_at_least_one_without_compat():
    config = Config(input_size=(64, 64), assigner=configs.Assigner("dynamic_soft_label", topk=5))
    config.compat.priors_of_any_box = False
    boxes = [[8.0, 8, 40, 40], [9, 9, 10, 10]]
    records = [record([box], size=(64, 64)) for box in boxes]
    counts = priors_per_object(records, config, 4)
    assert counts[1] == 1 and counts[0] >= 1
    config.compat.priors_of_any_box = True
    assert priors_per_object(records, config, 4)[1] == 0


def test_no_images_have_no_objects():
    assert (
        len(priors_per_object([], Config(), 3)) == len(objects_at_input([], Config()).labels) == 0
    )


def test_sample_is_evenly_spaced():
    assert sample([*range(10)], 4) == [0, 3, 6, 9]
    assert sample([*range(3)], 4) == [0, 1, 2]
    assert sample([], 4) == []


@pytest.mark.parametrize("side", [2.0, 10.0, 32.5])
def test_shifted_iou_is_intersection_over_union(side):
    common, own = (side - 1) ** 2, side**2
    assert shifted_iou(side) == pytest.approx(common / (own + own - common))


def test_of_sizes_suggests_the_input_size_that_small_classes_need():
    sides = np.array([[24, 24]] * 3 + [[80, 80]] * 3 + [[5, 50]], np.float32)
    config = Config(input_size=(320, 256))
    of_two = Objects(np.array([0, 0, 0, 1, 1, 1, 1]), sides)
    tiny, small = of_sizes("abc", of_two, config)
    assert tiny.title.startswith("14% of the training boxes are narrower than the finest stride, 8")
    assert small.title == (
        "class 'a' is small at an input of 320 x 256: half of its 3 boxes are under 24 px, 3.0 "
        "times the finest stride; a box of this size that is one pixel off in x and y has an iou "
        "of 0.85"
    )
    assert small.fix == "--config.input_size=448,352, which takes 1.9 times the computation"
    _, smaller = of_sizes("abc", of_two._replace(labels=np.array([0, 0, 0, 1, 1, 1, 2])), config)
    assert smaller.title.startswith("class 'c' is small") and smaller.title.endswith(
        "also small: a (24 px)"
    )
    # sqrt(5 * 50) = 15.8 px, but at most twice the input is suggested.
    assert smaller.fix.startswith("--config.input_size=640,512")


def test_of_classes_finds_absent_unevaluated_and_rare_classes():
    absent, unevaluated, rare = of_classes(
        ["a", "b", "c", "d"], np.array([0, 60, 49, 0]), np.array([1, 0, 5, 0])
    )
    assert absent.title == ("no training boxes for 2 of 4 classes: a, d; the AP of a will be 0")
    assert unevaluated.title.startswith("no validation boxes for 1 of 4 classes: b;")
    assert rare.title == "classes with fewer than 50 training boxes: c (49)"


@pytest.mark.parametrize(("warmup", "found"), [(20, 0), (21, 1), (100, 1)])
def test_of_schedule_finds_a_warmup_longer_than_a_fifth_of_the_run(warmup, found):
    config = Config()
    config.data.batch_size, config.training.epochs, config.training.eval_every = 4, 10, 10
    config.training.warmup_steps = warmup
    assert len(of_schedule(config, 43)) == found


def test_findings_that_lost_entries_may_explain_are_left_out():
    names, train, val = ["a", "b"], np.array([0, 48]), np.array([5, 0])
    box, image = Lost(entries=1), Lost(images=1)

    def kinds(*lost):
        return [finding.kind for finding in of_classes(names, train, val, lost)]

    absent = "class_without_training_boxes", "class_without_validation_boxes", "few_boxes"
    assert kinds(Lost(), Lost()) == [*absent]
    assert kinds(box, Lost()) == [*absent[1:]]
    assert kinds(box, box) == [absent[2]]
    assert kinds(Lost(entries=2), image) == []
    assert len(of_empty("train", 6, 10)) == 1
    assert of_empty("train", 6, 10, image) == []
    config = Config()
    config.data.batch_size, config.training.warmup_steps = 8, 0
    config.training.eval_every = config.training.epochs
    assert [finding.kind for finding in of_schedule(config, 7)] == ["batch_size"]
    assert of_schedule(config, 7, image) == []


def test_of_priors_excludes_duplicate_boxes():
    counts, labels = np.array([1] * 90 + [0] * 10), np.zeros(100, int)
    [found] = of_priors(["a"], labels, counts, repeated=8)
    assert (found.kind, found.count) == ("unlearned_boxes", 10)
    assert of_priors(["a"], labels, counts, repeated=9) == []
