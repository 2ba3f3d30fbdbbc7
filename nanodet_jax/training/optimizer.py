"""The optimizer and its schedule, as the original's PyTorch ones behave."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanodet_jax.config import Rates, Training


def scale_rate(training: Training, batch_size: int) -> Training:
    """A copy whose learning rate is for batches of so many images, if `rate_batch` asks for that.

    In proportion: twice the images, whose mean gradient is half as noisy, take twice the step.
    """
    if not training.rate_batch:
        return training
    rate = training.learning_rate * batch_size / training.rate_batch
    return replace(training, learning_rate=rate)


def epoch_rates(training: Training, steps_per_epoch: int, epochs: int) -> np.ndarray:
    """Learning rate [epochs] of each epoch, or of what the warm-up leaves of it, in float64.

    PyTorch's schedulers derive each epoch's rate from the one in force when the epoch before
    ends. A warm-up overwrites it, up to the full rate, so the cosine starts from there in the
    epoch after its end, above its closed form; kept, so that such runs agree.
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


def warmup_rate(training: Training, step):
    """Rate of a linear warm-up at `step`; its last step, `warmup_steps`, has the full rate."""
    done = step / training.warmup_steps
    return training.learning_rate * (training.warmup_ratio + (1 - training.warmup_ratio) * done)


def learning_rate(training: Training, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """Rate as a function of the number of steps done."""
    rates = jnp.asarray(epoch_rates(training, steps_per_epoch, epochs), jnp.float32)

    def schedule(step: jax.Array) -> jax.Array:
        epoch = jnp.minimum(step // steps_per_epoch, len(rates) - 1)
        if training.warmup_steps == 0:
            return rates[epoch]
        warm = warmup_rate(training, step)
        return jnp.where(step <= training.warmup_steps, warm, rates[epoch])

    return schedule


def decay_mask(params: Any) -> Any:
    """A flag per parameter: whether decay acts on it. Not on a normalisation's scale and bias."""
    if not isinstance(params, Mapping):
        return True
    if set(params) == {"scale", "bias"}:
        return {name: False for name in params}
    return {name: decay_mask(child) for name, child in params.items()}


def scale_by_part(rates: Rates) -> optax.GradientTransformation:
    """Updates times the rate of the part of the network that they belong to; 0 freezes it.

    The original's `lr_mult`, but that its cosine ends at the same rate for all parts.
    """

    def scale(updates: Any, _: Any) -> Any:
        return {
            part: optax.tree.scale(getattr(rates, part), tree) for part, tree in updates.items()
        }

    return optax.stateless(scale)


def make_optimizer(training: Training, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD with momentum or AdamW, behind a bound on the norm.

    Decay acts on every parameter, as in the original's recipes, unless `no_norm_decay`.
    """
    mask = decay_mask if training.no_norm_decay else None
    match training.optimizer:
        case "sgd":
            # PyTorch adds the decay to the gradient, before the momentum.
            update = optax.chain(
                optax.add_decayed_weights(training.weight_decay, mask),
                optax.sgd(schedule, momentum=training.momentum),
            )
        case "adamw":
            update = optax.adamw(schedule, weight_decay=training.weight_decay, mask=mask)
    update = optax.chain(update, scale_by_part(training.rates))
    if training.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(training.clip_norm), update)
    return update


def skip_update(opt_state: Any) -> Any:
    """The optimizer's state after a step without an update: only its place in the schedule moves.

    The learning rate belongs to the number of the step; Adam's own count, which corrects the bias
    of its averages, to the updates that were made.
    """

    def skip(part: Any) -> Any:
        if isinstance(part, optax.ScaleByScheduleState):
            return optax.ScaleByScheduleState(optax.safe_increment(part.count))
        return part

    return jax.tree.map(
        skip, opt_state, is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState)
    )
