"""Optimizers and learning-rate schedules, equal to PyTorch's, which the original uses."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanodet_jax.config import LrMultipliers, Training


def scale_learning_rate(training: Training, batch_size: int) -> Training:
    """Return a copy with the learning rate for this batch size, if `lr_base_batch_size` is set.

    The rate grows in proportion to the batch, whose mean gradient is less noisy.
    """
    if not training.lr_base_batch_size:
        return training
    rate = training.learning_rate * batch_size / training.lr_base_batch_size
    return replace(training, learning_rate=rate)


def epoch_rates(training: Training, steps_per_epoch: int, epochs: int) -> np.ndarray:
    """Return the learning rate of each epoch after warm-up, [epochs] float64.

    PyTorch's schedulers derive each epoch's rate from the rate at the end of the previous epoch.
    Warm-up overwrites that rate and ends at the full rate, so a cosine schedule after it starts at
    the full rate, above its closed form. This is reproduced so that runs agree with the original.
    """
    lowest = training.final_fraction * training.learning_rate
    rates: list[float] = []
    for epoch in range(epochs):
        if epoch == 0 or epoch * steps_per_epoch <= training.warmup_steps:
            rates.append(training.learning_rate)
        elif training.schedule == "cosine":
            now, before = (1 + math.cos(math.pi * e / epochs) for e in (epoch, epoch - 1))
            rates.append(now / before * (rates[-1] - lowest) + lowest)
        else:
            rates.append(rates[-1] * (training.gamma if epoch in training.milestones else 1))
    return np.asarray(rates)


def warmup_rate(training: Training, step: jax.Array) -> jax.Array:
    """Return the rate of the linear warm-up at `step`: the full rate at step `warmup_steps`."""
    done = step / training.warmup_steps
    return training.learning_rate * (training.warmup_ratio + (1 - training.warmup_ratio) * done)


def learning_rate(training: Training, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """Return the learning rate as a function of the number of steps done."""
    rates = jnp.asarray(epoch_rates(training, steps_per_epoch, epochs), jnp.float32)

    def schedule(step: jax.Array) -> jax.Array:
        epoch = jnp.minimum(step // steps_per_epoch, len(rates) - 1)
        if training.warmup_steps == 0:
            return rates[epoch]
        warm = warmup_rate(training, step)
        return jnp.where(step <= training.warmup_steps, warm, rates[epoch])

    return schedule


def decay_mask(params: Any) -> Any:
    """Return a bool per parameter: False for scale and bias of normalization layers."""
    if not isinstance(params, Mapping):
        return True
    if set(params) == {"scale", "bias"}:
        return {name: False for name in params}
    return {name: decay_mask(child) for name, child in params.items()}


def scale_by_part(multipliers: LrMultipliers) -> optax.GradientTransformation:
    """Multiply updates by the factor of their part of the network; 0 freezes the part.

    This is the original's `lr_mult`, except that the original's cosine schedule ends at the same
    rate for all parts.
    """

    def scale(updates: Any, _: Any) -> Any:
        return {
            part: optax.tree.scale(getattr(multipliers, part), tree)
            for part, tree in updates.items()
        }

    return optax.stateless(scale)


def make_optimizer(training: Training, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return SGD with momentum or AdamW, after clipping by the global norm.

    Weight decay acts on every parameter, as in the original's recipes, unless `no_norm_decay`.
    """
    mask = decay_mask if training.no_norm_decay else None
    match training.optimizer:
        case "sgd":
            # PyTorch adds weight decay to the gradient, before the momentum.
            update = optax.chain(
                optax.add_decayed_weights(training.weight_decay, mask),
                optax.sgd(schedule, momentum=training.momentum),
            )
        case "adamw":
            update = optax.adamw(schedule, weight_decay=training.weight_decay, mask=mask)
    update = optax.chain(update, scale_by_part(training.lr_multipliers))
    if training.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(training.clip_norm), update)
    return update


def skip_update(opt_state: Any) -> Any:
    """Return the optimizer's state after a skipped update: only the schedule advances.

    The learning rate follows the number of steps. Adam's own count, which corrects the bias of its
    moments, follows the number of updates.
    """

    def skip(part: Any) -> Any:
        if isinstance(part, optax.ScaleByScheduleState):
            return optax.ScaleByScheduleState(optax.safe_increment(part.count))
        return part

    return jax.tree.map(
        skip, opt_state, is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState)
    )
