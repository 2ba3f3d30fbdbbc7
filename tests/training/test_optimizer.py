"""Schedules against PyTorch's, step by step, and optimizers against loops in float64."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nanodet_jax.config import LrMultipliers, Training
from nanodet_jax.training.optimizer import (
    epoch_rates,
    learning_rate,
    make_optimizer,
    scale_learning_rate,
    skip_update,
)


def simulate(training, steps_per_epoch, epochs):
    """Return the rate of every step of the original's loop.

    Its scheduler runs after each epoch and changes the current rate. Its warm-up overwrites that
    rate before every step up to and including step `warmup_steps`.
    """
    base = rate = training.learning_rate
    lowest = training.final_fraction * base
    rates, step = [], 0
    for epoch in range(epochs):
        for _ in range(steps_per_epoch):
            if training.warmup_steps and step <= training.warmup_steps:
                left = 1 - step / training.warmup_steps
                rate = base * (1 - left * (1 - training.warmup_ratio))
            rates.append(rate)
            step += 1
        if training.schedule == "cosine":
            numerator = 1 + math.cos(math.pi * (epoch + 1) / epochs)
            denominator = 1 + math.cos(math.pi * epoch / epochs)
            rate = numerator / denominator * (rate - lowest) + lowest
        elif epoch + 1 in training.milestones:
            rate = rate * training.gamma
    return rates


WARMUPS = {
    "none": 0,
    "within the first epoch": 3,
    "up to its last step": 9,
    "up to the second epoch's first": 10,
    "across epochs": 37,
    "past the end": 200,
}


@pytest.mark.parametrize("schedule", ["multistep", "cosine"])
@pytest.mark.parametrize("warmup", WARMUPS)
def test_learning_rate_matches_the_loop_of_the_original(warmup, schedule):
    training = Training(
        learning_rate=0.14,
        schedule=schedule,
        milestones=(2, 5, 7),
        gamma=0.2,
        final_fraction=0.05,
        warmup_steps=WARMUPS[warmup],
        warmup_ratio=0.1,
    )
    expected = simulate(training, 10, 9)
    rates = jax.vmap(learning_rate(training, 10, 9))(jnp.arange(90))
    np.testing.assert_allclose(rates, expected, rtol=2e-6)
    beyond = learning_rate(training, 10, 9)(jnp.int32(95))
    assert warmup == "past the end" or float(beyond) == rates[-1]
    # After warm-up, the last step of an epoch has the rate of the epoch.
    whole = epoch_rates(training, 10, 9)
    for epoch in range(9):
        if epoch * 10 + 9 > training.warmup_steps:
            assert whole[epoch] == pytest.approx(expected[epoch * 10 + 9], rel=1e-12)


def test_multistep_rate_falls_at_milestones():
    training = Training(learning_rate=1.0, milestones=(240, 260, 275))
    rates = epoch_rates(training, 7, 280)
    changes = np.flatnonzero(np.diff(rates)) + 1
    assert changes.tolist() == [240, 260, 275]
    np.testing.assert_allclose(rates[[0, 239, 240, 260, 275, 279]], [1, 1, 0.1, 0.01, 1e-3, 1e-3])


def closed_form(epoch, epochs, base, lowest):
    return lowest + (base - lowest) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def test_cosine_rate_after_a_short_warmup_has_its_closed_form():
    training = Training(
        learning_rate=1e-3, schedule="cosine", final_fraction=0.05, warmup_steps=500
    )
    rates = epoch_rates(training, 1000, 300)
    expected = [closed_form(epoch, 300, 1e-3, 5e-5) for epoch in range(300)]
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("steps_per_epoch", "epoch", "rate", "closed"),
    [(50, 20, 9.922e-4, 9.896e-4), (10, 60, 9.71e-4, 9.09e-4)],  # recorded from the original's loop
)
def test_cosine_rate_after_a_long_warmup_is_above_its_closed_form(
    steps_per_epoch, epoch, rate, closed
):
    training = Training(
        learning_rate=1e-3, schedule="cosine", final_fraction=0.05, warmup_steps=500
    )
    rates = epoch_rates(training, steps_per_epoch, 300)
    assert rates[epoch] == pytest.approx(rate, rel=5e-4)
    assert closed_form(epoch, 300, 1e-3, 5e-5) == pytest.approx(closed, rel=5e-4)


STEPS = 5
SHAPES = {
    "backbone": {"conv": {"kernel": (3, 4)}, "norm": {"scale": (4,), "bias": (4,)}},
    "guidance": {"output": {"kernel": (4, 2), "bias": (2,)}, "scale_0": {"factor": ()}},
}


def rate_at(step):
    return 0.1 / (1 + step)


def schedule(step):
    return rate_at(step.astype(jnp.float32))


def parameters_and_gradients(scale=1.0):
    random = np.random.default_rng(0)

    def draw(factor):
        def leaf(shape):
            return np.asarray(random.normal(size=shape) * factor, np.float32)

        return jax.tree.map(leaf, SHAPES, is_leaf=lambda node: isinstance(node, tuple))

    return draw(1), [draw(scale * (1 + step)) for step in range(STEPS)]


def trained(training, parameters, gradients):
    optimizer = make_optimizer(training, schedule)
    state = optimizer.init(parameters)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, parameters)
        parameters = jax.tree.map(jnp.add, parameters, updates)
    return parameters


def check(training, rule, scale=1.0):
    """Compare every leaf with `rule(parameter, gradients)`, in float64."""
    parameters, gradients = parameters_and_gradients(scale)
    actual = trained(training, parameters, gradients)
    if training.clip_norm > 0:
        gradients = [clipped(gradient, training.clip_norm) for gradient in gradients]
    expected = jax.tree.map(
        lambda start, *each: rule(np.float64(start), [np.float64(g) for g in each]),
        parameters,
        *gradients,
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected)


def clipped(gradient, bound):
    squares = [np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(gradient)]
    return jax.tree.map(lambda leaf: leaf * min(1, bound / math.sqrt(sum(squares))), gradient)


def sgd(parameter, gradients, momentum=0.8, decay=0.03, rate=rate_at):
    """torch.optim.SGD: momentum accumulates the gradient with the weight decay."""
    buffer = 0.0
    for step, gradient in enumerate(gradients):
        buffer = momentum * buffer + gradient + decay * parameter
        parameter = parameter - rate(step) * buffer
    return parameter


def adamw(parameter, gradients, decay=0.3, rate=rate_at):
    """torch.optim.AdamW: weight decay shrinks the parameter, separately from the moments."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    first = second = 0.0
    for step, gradient in enumerate(gradients):
        parameter = parameter * (1 - rate(step) * decay)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        mean = first / (1 - beta1 ** (step + 1))
        deviation = np.sqrt(second / (1 - beta2 ** (step + 1)))
        parameter = parameter - rate(step) * mean / (deviation + epsilon)
    return parameter


@pytest.mark.parametrize("clip_norm", [0.0, 9.0])
def test_sgd_matches_a_float64_loop(clip_norm):
    check(Training(momentum=0.8, weight_decay=0.03, clip_norm=clip_norm), sgd)


@pytest.mark.parametrize("clip_norm", [0.0, 9.0])
@pytest.mark.parametrize("scale", [1.0, 1e-6])  # small gradients make epsilon matter
def test_adamw_matches_a_float64_loop(scale, clip_norm):
    training = Training(optimizer="adamw", weight_decay=0.3, clip_norm=clip_norm * scale)
    check(training, adamw, scale)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_lr_multipliers_scale_the_updates_of_each_part(optimizer):
    """As in the original, the multiplier also scales AdamW's weight decay."""
    settings = {"optimizer": optimizer, "weight_decay": 0.3, "momentum": 0.8}
    multipliers = LrMultipliers(backbone=0.25, guidance=0.0)
    parameters, gradients = parameters_and_gradients()
    plain = trained(Training(**settings), parameters, gradients[:1])
    scaled = trained(Training(**settings, lr_multipliers=multipliers), parameters, gradients[:1])
    moved = jax.tree.map(lambda after, before: after - before, plain, parameters)
    expected = {
        "backbone": jax.tree.map(
            lambda before, change: before + 0.25 * change, parameters["backbone"], moved["backbone"]
        ),
        "guidance": parameters["guidance"],
    }
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), scaled, expected)


@pytest.mark.parametrize(("optimizer", "rule"), [("sgd", sgd), ("adamw", adamw)])
def test_no_norm_decay_exempts_normalization_layers_only(optimizer, rule):
    """With zero gradients, parameters change by weight decay alone."""
    settings = {"optimizer": optimizer, "weight_decay": 0.3, "momentum": 0.8}
    parameters, gradients = parameters_and_gradients()
    still = [jax.tree.map(np.zeros_like, gradient) for gradient in gradients]
    after = trained(Training(**settings, no_norm_decay=True), parameters, still)
    jax.tree.map(
        np.testing.assert_array_equal, after["backbone"]["norm"], parameters["backbone"]["norm"]
    )
    decayed = partial(rule, gradients=[0.0] * STEPS, decay=0.3)
    for path in (("backbone", "conv", "kernel"), ("guidance", "output", "bias"),
                 ("guidance", "scale_0", "factor")):  # fmt: skip
        ours, start = after, parameters
        for name in path:
            ours, start = ours[name], start[name]
        np.testing.assert_allclose(ours, decayed(np.float64(start)), rtol=1e-5, err_msg=str(path))
        assert not np.allclose(ours, start, rtol=0.01)


@pytest.mark.parametrize(("optimizer", "rule"), [("sgd", sgd), ("adamw", adamw)])
def test_skipped_update_advances_the_schedule_only(optimizer, rule):
    """The rate follows the steps; momentum and Adam's bias correction follow the updates."""
    settings = Training(optimizer=optimizer, weight_decay=0.3, momentum=0.8)
    start, gradients = parameters_and_gradients()
    chain = make_optimizer(settings, schedule)
    ours, state = start, chain.init(start)
    for gradient in gradients:
        state = skip_update(skip_update(state))
        updates, state = chain.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)

    def expected(parameter, *each):
        return rule(np.float64(parameter), each, decay=0.3, rate=lambda k: rate_at(3 * k + 2))

    expected = jax.tree.map(expected, start, *gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, expected)


def test_clip_norm_of_the_cases_lies_between_their_gradient_norms():
    _, gradients = parameters_and_gradients()
    norms = [
        math.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
        for gradient in gradients
    ]
    assert min(norms) < 9 < max(norms)


def test_learning_rate_scales_with_the_batch_only_if_lr_base_batch_size_is_set():
    training = Training(learning_rate=0.14, lr_base_batch_size=64, milestones=(1,), epochs=2)
    larger, smaller = scale_learning_rate(training, 128), scale_learning_rate(training, 16)
    np.testing.assert_allclose(epoch_rates(larger, 10, 2), [0.28, 0.028])
    np.testing.assert_allclose(epoch_rates(smaller, 10, 2), [0.035, 0.0035])
    assert training.learning_rate == 0.14
    plain = Training(learning_rate=0.14)
    assert scale_learning_rate(plain, 128) is plain
