"""Steps with a non-finite loss or gradient change no weights, and are reported."""

import jax
import numpy as np
import optax
import pytest

from nanodet_jax.config import Config
from nanodet_jax.data.pipeline import images_of_step, training_batches
from nanodet_jax.data.sources.shapes import ShapesSource
from nanodet_jax.errors import UserError
from nanodet_jax.state import create_state
from nanodet_jax.training.optimizer import skip_update
from nanodet_jax.training.parallel import make_train_step
from nanodet_jax.training.skipped_steps import NAMED_IMAGES, SkippedSteps
from tests.training.test_parallel import IMAGES, MANY, PARTS, Tiny, make_batch

DEVICES = 2


@pytest.fixture(scope="module", params=[1, DEVICES])
def step(request):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(PARTS["schedule"]))
    parts = PARTS | {"optimizer": optimizer, "ema_decay": 0.9}
    return make_train_step(num_devices=request.param, **parts), optimizer


def make_state(optimizer):
    variables = Tiny().init(jax.random.key(0), IMAGES, method="branches")
    return create_state(variables, optimizer, ema=True)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((one, other)))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_non_finite_image_changes_only_the_step_number(step, value):
    step, optimizer = step
    batch = make_batch((MANY, MANY))
    images = batch.images.copy()
    images[-1, 5, 5] = value  # on the last device
    state, metrics = step(make_state(optimizer), batch._replace(images=images))
    assert metrics["skipped"] == 1
    assert int(state.step) == 1
    untouched = make_state(optimizer)
    assert_same(
        state.replace(step=0), untouched.replace(step=0, opt_state=skip_update(untouched.opt_state))
    )
    before = jax.device_get(state.params)

    ours, metrics = step(state, batch)
    assert metrics["skipped"] == 0
    untouched = make_state(optimizer)
    theirs, expected = step(untouched.replace(opt_state=skip_update(untouched.opt_state)), batch)
    assert metrics["loss"] == expected["loss"]
    assert int(ours.step) == 2 and int(theirs.step) == 1
    # Only the average depends on the number of the step: new values get less and less weight.
    assert_same(ours.replace(step=0, ema=0), theirs.replace(step=0, ema=0))
    moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (ours.params, before)))]
    assert all(moved)


def report(skipped, flags, first=1):
    """Add the flags of consecutive steps, and return the reported lines."""
    lines = []
    for number, flag in enumerate(flags, start=first):
        skipped.add(number, np.float32(flag))
    skipped.report(lines.append)
    return lines


def test_report_names_the_images_of_a_skipped_step():
    skipped = SkippedSteps(3, lambda step: [f"{step}_{i}.jpg" for i in range(NAMED_IMAGES + 2)])
    assert report(skipped, [0, 0]) == []
    (line,) = report(skipped, [0, 1, 0], first=3)
    assert line.startswith("step 4: ") and "4_0.jpg, 4_1.jpg" in line and "and 2 more" in line
    assert skipped.total == 1


def test_too_many_consecutive_skipped_steps_raise():
    skipped = SkippedSteps(3, lambda step: ["a.jpg"])
    report(skipped, [1, 1, 0, 1, 1, 0, 1])
    assert skipped.total == 5
    with pytest.raises(UserError, match="in 3 steps in a row"):
        report(skipped, [1, 1], first=8)


def test_images_of_step_equal_those_of_the_loader():
    config = Config(input_size=(64, 64))
    config.data.batch_size = 3
    config.data.workers = 2
    source = ShapesSource("train", size=64, count=10)  # one is left out of each epoch
    batches = training_batches(source, config, slots=6)
    counts = {source[i].name: len(source[i].boxes) for i in range(len(source))}
    for number in range(1, 8):
        names = images_of_step(source, config, number)
        assert len(set(names)) == 3
        valid = next(batches).ground_truth.valid
        assert [counts[name] for name in names] == valid.sum(axis=1).tolist()
