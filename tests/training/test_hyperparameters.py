"""The step takes the run's hyperparameters as inputs: equal results, one program for all runs."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanodet_jax.config import Config, Loss, LrMultipliers, Training
from nanodet_jax.data.run_length import RunLength
from nanodet_jax.state import create_state
from nanodet_jax.training.hyperparameters import hyperparameters_of
from nanodet_jax.training.optimizer import MIN_RATES, learning_rate, make_optimizer, rates_of
from nanodet_jax.training.parallel import (
    make_adjustable_step,
    make_place_batch,
    make_train_step,
    replicate,
)
from tests.training.test_parallel import FEW, IMAGES, MANY, PARTS, Tiny, make_batch

LENGTH = RunLength(steps_per_epoch=2, total_steps=6)
SGD = Training(learning_rate=0.1, milestones=(2,), weight_decay=0.01)
ADAMW = Training(
    optimizer="adamw", learning_rate=0.01, schedule="cosine", warmup_steps=3, warmup_ratio=1e-4,
    clip_norm=0.5, ema_decay=0.9998, no_norm_decay=True,
)  # fmt: skip
LOSS = Loss(quality_focal=0.7, giou=1.3, distribution_focal=0.1)


class Head(nn.Module):
    """A network whose only part is its head."""

    model = Tiny.model
    is_random = False

    @nn.compact
    def branches(self, images, detach=False, train=True, axis_name=None, padded_sizes=None):
        return Tiny(name="head").branches(images, detach, train, axis_name)


def trained(step, training, *hyperparameters, num_devices=1):
    """Return the state and the metrics after some steps."""
    variables = Head().init(jax.random.key(0), jnp.asarray(IMAGES), method="branches")
    optimizer = make_optimizer(training, lambda step: 0.0)
    state = create_state(variables, optimizer, ema=training.ema_decay > 0)
    state, hyperparameters = replicate((state, hyperparameters), num_devices)
    batch = make_place_batch(num_devices)(make_batch((MANY, FEW)))
    for _ in range(LENGTH.total_steps):
        state, metrics = step(state, batch, *hyperparameters)
    return jax.device_get((state, metrics))


def adjustable(training, num_devices=1):
    return make_adjustable_step(
        model=Head(), criterion=PARTS["criterion"], training=training, num_devices=num_devices
    )


def constant(training, num_devices=1):
    """The step with the hyperparameters of the run as constants."""
    schedule = learning_rate(training, LENGTH.steps_per_epoch, LENGTH.epochs)
    return make_train_step(
        model=Head(),
        criterion=replace(PARTS["criterion"], weights=LOSS),
        optimizer=make_optimizer(training, schedule),
        schedule=schedule,
        ema_decay=training.ema_decay,
        detach_step=training.detach_epoch * LENGTH.steps_per_epoch,
        num_devices=num_devices,
    )


@pytest.mark.parametrize("training", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("num_devices", [1, 2])
def test_adjustable_step_equals_the_step_of_constants(training, num_devices):
    if jax.local_device_count() < num_devices:
        pytest.skip(f"needs {num_devices} devices, and XLA_FLAGS was set otherwise")
    hyperparameters = hyperparameters_of(Config(loss=LOSS), training, LENGTH)
    step = adjustable(training, num_devices)
    ours = trained(step, training, hyperparameters, num_devices=num_devices)
    expected = trained(constant(training, num_devices), training, num_devices=num_devices)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        ours,
        expected,
    )
    assert ours[0].step == LENGTH.total_steps
    assert step._cache_size() == 1


OTHERS = {
    "learning rate": replace(SGD, learning_rate=0.03),
    "schedule": replace(SGD, schedule="cosine", warmup_steps=2, warmup_ratio=0.01),
    "weight decay": replace(SGD, weight_decay=0.0),
    "momentum": replace(SGD, momentum=0.5),
    "multiplier": replace(SGD, lr_multipliers=LrMultipliers(head=0.25)),
}


def test_other_hyperparameters_reuse_the_program_and_take_effect():
    step = adjustable(SGD)
    before = trained(step, SGD, hyperparameters_of(Config(loss=LOSS), SGD, LENGTH))
    for name, training in OTHERS.items():
        ours = trained(step, training, hyperparameters_of(Config(loss=LOSS), training, LENGTH))
        pairs = zip(*map(jax.tree.leaves, (ours[0].params, before[0].params)))
        assert any(np.any(one != other) for one, other in pairs), name
    assert step._cache_size() == 1


def test_all_hyperparameters_together_equal_constants():
    training = replace(
        SGD, learning_rate=0.03, schedule="cosine", warmup_steps=2, warmup_ratio=0.01,
        weight_decay=0.0, momentum=0.5, lr_multipliers=LrMultipliers(head=0.25),
    )  # fmt: skip
    hyperparameters = hyperparameters_of(Config(loss=LOSS), training, LENGTH)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        trained(adjustable(SGD), training, hyperparameters),
        trained(constant(training), training),
    )


def lowered(config, training, length):
    """The program of the step of a run, as text."""
    hyperparameters = hyperparameters_of(config, training, length)
    variables = Head().init(jax.random.key(0), jnp.asarray(IMAGES), method="branches")
    optimizer = make_optimizer(training, hyperparameters.rates.at)
    state = create_state(variables, optimizer, ema=training.ema_decay > 0)
    return adjustable(training).lower(state, make_batch((MANY, FEW)), hyperparameters).as_text()


def test_runs_that_differ_in_numbers_alone_have_the_same_program():
    text = lowered(Config(), ADAMW, LENGTH)
    other = replace(
        ADAMW, learning_rate=3e-4, schedule="multistep", milestones=(1,), warmup_steps=0,
        weight_decay=0.2, clip_norm=9.0, ema_decay=0.99, detach_epoch=4,
        lr_multipliers=LrMultipliers(backbone=0.1),
    )  # fmt: skip
    assert lowered(Config(loss=LOSS), other, RunLength(7, 700)) == text
    assert lowered(Config(), replace(ADAMW, clip_norm=0.0), LENGTH) != text


def test_table_of_rates_has_a_fixed_length_up_to_its_minimum():
    assert rates_of(SGD, 7, 1).by_epoch.shape == (MIN_RATES,)
    assert rates_of(SGD, 7, MIN_RATES).by_epoch.shape == (MIN_RATES,)
    assert rates_of(SGD, 7, MIN_RATES + 1).by_epoch.shape == (2 * MIN_RATES,)


def test_ema_decay_keeps_the_precision_of_its_complement():
    ema = hyperparameters_of(Config(), ADAMW, LENGTH).ema
    assert float(ema.rest) == pytest.approx(0.0002, rel=1e-7)
    assert float(1 - ema.decay) != pytest.approx(0.0002, rel=1e-5)
