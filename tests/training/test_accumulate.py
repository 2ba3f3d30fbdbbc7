"""Gradient accumulation against a Python loop over micro-batches, and against as many devices."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nanodet_jax.config import Config, check
from nanodet_jax.errors import UserError
from nanodet_jax.losses.assigners.dynamic_soft_label import DynamicSoftLabel
from nanodet_jax.losses.criterion import Divisors
from nanodet_jax.runtime import backend
from nanodet_jax.state import create_state
from nanodet_jax.training.parallel import make_train_step
from nanodet_jax.training.step import update_ema
from tests.training.test_parallel import (
    FEW,
    IMAGES,
    MANY,
    NONE,
    PARTS,
    Tiny,
    assert_close,
    make_batch,
)

STEPS = 3
EMA = {"ema_decay": 0.9998, "detach_step": 0}
CRITERIA = {
    "atss": PARTS["criterion"],
    "dynamic_soft_label": replace(
        PARTS["criterion"],
        assigner=DynamicSoftLabel(
            topk=5, iou_factor=3.0, ignore_threshold=0.5, priors_of_any_box=True
        ),
    ),
}


def parts_with(assigner="atss"):
    """Arguments of `make_train_step`: a clip that takes effect, momentum, and a rate that falls."""
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), PARTS["optimizer"])
    return PARTS | EMA | {"optimizer": optimizer, "criterion": CRITERIA[assigner]}


def unlike(*boxes):
    """A batch of two images per entry, all different."""
    batch = make_batch(boxes)
    noise = np.random.default_rng(1).normal(0.3, size=batch.images.shape)
    return batch._replace(images=noise.astype(np.float32))


def train(step, batch, parts):
    variables = Tiny().init(jax.random.key(0), jnp.asarray(IMAGES), method="branches")
    state = create_state(variables, parts["optimizer"], ema=True)
    for _ in range(STEPS):
        state, metrics = step(state, batch)
    return jax.device_get((state, metrics))


def looping_step(parts, accumulate):
    """The step written as a loop: micro-batches in turn, everything else once.

    With one micro-batch it is the step without accumulation.
    """
    criterion = parts["criterion"]

    def forward(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        return Tiny().apply(variables, images, method="branches", mutable=["batch_stats"])

    def step(state, batch):
        size = len(batch.images) // accumulate
        micro = [
            jax.tree.map(lambda leaf, i=i: leaf[i * size : (i + 1) * size], batch)
            for i in range(accumulate)
        ]
        sums = []
        for part in micro:
            branches, _ = forward(state.params, state.batch_stats, part.images)
            sums.append(criterion.divisors(branches, part.ground_truth))
        samples = sum(own.samples for own in sums)
        divisors = Divisors(samples, (sum(own.box_weights[0] for own in sums),))
        divisors = None if accumulate == 1 else divisors
        gradients, metrics, batch_stats = None, None, state.batch_stats
        for part in micro:

            def loss_fn(params, part=part, batch_stats=batch_stats):
                branches, updated = forward(params, batch_stats, part.images)
                loss, metrics = criterion(branches, part.ground_truth, divisors=divisors)
                return loss, (metrics, updated["batch_stats"])

            more, (of_part, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
            gradients = more if gradients is None else jax.tree.map(jnp.add, gradients, more)
            metrics = of_part if metrics is None else jax.tree.map(jnp.add, metrics, of_part)
        updates, opt_state = parts["optimizer"].update(gradients, state.opt_state, state.params)
        metrics |= {
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": parts["schedule"](state.step),
            "skipped": jnp.zeros(()),
        }
        state = replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        average = update_ema(state.ema, state.variables, state.step, EMA["ema_decay"])
        return replace(state, ema=average), metrics

    return backend.jit(step)


def test_step_of_one_micro_batch_equals_the_plain_step_to_the_last_bit():
    parts, batch = parts_with("atss"), unlike(MANY, FEW)
    ours = train(make_train_step(**parts, accumulate=1), batch, parts)
    jax.tree.map(np.testing.assert_array_equal, ours, train(looping_step(parts, 1), batch, parts))


@pytest.mark.parametrize("accumulate, assigner", [(4, "atss"), (2, "dynamic_soft_label")])
def test_step_of_micro_batches_agrees_with_a_python_loop(assigner, accumulate):
    """Gradients, momentum, running statistics, ema, metrics, and how often each is updated."""
    parts, batch = parts_with(assigner), unlike(MANY, NONE, FEW, MANY)
    step = make_train_step(**parts, accumulate=accumulate)
    state, metrics = train(step, batch, parts)
    assert step._cache_size() == 1
    assert metrics["positives"] > 0
    assert metrics["gradient_norm"] > 0.1  # the bound on the whole gradient
    assert state.step == STEPS
    assert metrics["learning_rate"] == parts["schedule"](STEPS - 1)
    assert_close((state, metrics), train(looping_step(parts, accumulate), batch, parts))


def test_step_of_equal_micro_batches_is_that_of_the_whole_batch():
    """Batch norm makes no difference here, so divisors of single micro-batches would be noticed."""
    parts, batch = parts_with("atss"), make_batch((MANY, FEW))
    whole, expected = train(make_train_step(**parts), batch, parts)
    state, metrics = train(make_train_step(**parts, accumulate=2), batch, parts)
    assert_close(metrics, expected)
    assert_close((state.params, state.opt_state), (whole.params, whole.opt_state))


def test_step_of_micro_batches_agrees_with_that_of_as_many_devices():
    if jax.local_device_count() < 8:
        pytest.skip("needs 8 devices, and XLA_FLAGS was set otherwise")
    parts, batch = parts_with("dynamic_soft_label"), unlike(MANY, FEW, NONE, MANY)
    eight = make_train_step(num_devices=8, **parts)
    state, metrics = train(eight, batch, parts)
    ours, our_metrics = train(make_train_step(num_devices=4, accumulate=2, **parts), batch, parts)
    assert_close(our_metrics, metrics)
    assert_close((ours.params, ours.opt_state), (state.params, state.opt_state))


def test_batch_that_devices_and_micro_batches_do_not_divide_is_refused():
    config = Config()
    config.data.batch_size, config.training.accumulate = 12, 4
    check(config, num_devices=3)
    with pytest.raises(UserError, match=r"^config\.data\.batch_size=12: must be divisible.* 2, ti"):
        check(config, num_devices=2)
    config.training.accumulate = 0
    with pytest.raises(UserError, match=r"^config\.training\.accumulate=0: must be positive$"):
        check(config)
