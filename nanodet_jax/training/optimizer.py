"""Optimizers and learning-rate schedules. They match PyTorch's, which the original uses."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanodet_jax.config import Training

MIN_RATES = 512  # minimum length of the table of learning rates
LAST_STEP = 2**31 - 1  # steps are int32


def scale_learning_rate(training: Training, batch_size: int) -> Training:
    """Return a copy with the learning rate for this batch size, if `lr_base_batch_size` is set.

    The rate is proportional to the batch size: the mean gradient of a larger batch is less noisy.
    """
    if not training.lr_base_batch_size:
        return training
    rate = training.learning_rate * batch_size / training.lr_base_batch_size
    return replace(training, learning_rate=rate)


def epoch_rates(
    training: Training, steps_per_epoch: int, epochs: int, offset: int = 0
) -> np.ndarray:
    """Return the learning rate of each epoch after warm-up, [epochs] float64.

    PyTorch's schedulers derive each epoch's rate from the rate at the end of the previous epoch.
    Warm-up overwrites that rate and ends at the full rate, so a cosine schedule after it starts at
    the full rate, above its closed form. This is reproduced so that runs agree with the original.
    """
    lowest = training.final_fraction * training.learning_rate
    rates: list[float] = []
    for epoch in range(epochs):
        if epoch == 0 or epoch * steps_per_epoch - offset <= training.warmup_steps:
            rates.append(training.learning_rate)
        elif training.schedule == "cosine":
            now, before = (1 + math.cos(math.pi * e / epochs) for e in (epoch, epoch - 1))
            rates.append(now / before * (rates[-1] - lowest) + lowest)
        else:
            rates.append(rates[-1] * (training.gamma if epoch in training.milestones else 1))
    return np.asarray(rates)


class Rates(NamedTuple):
    """Learning rates of a run, as inputs to a compiled step: float32 arrays, int32 for steps."""

    by_epoch: jax.Array  # [E]; the last rate also applies to all later epochs
    steps_per_epoch: jax.Array
    offset: jax.Array  # position of a batch in the data, minus its step; see `RunLength`
    full: jax.Array  # rate at the end of the warm-up
    warmup_steps: jax.Array  # 0 = no warm-up
    warmup_ratio: jax.Array  # fraction of the full rate at which the warm-up starts
    warmup_rise: jax.Array  # 1 - warmup_ratio, subtracted in float64

    def at(self, step: jax.Array) -> jax.Array:
        """Return the learning rate after `step` steps."""
        epoch = (step + self.offset) // self.steps_per_epoch
        epoch = jnp.clip(epoch, 0, len(self.by_epoch) - 1)
        done = step / jnp.maximum(self.warmup_steps, 1)
        warm = self.full * (self.warmup_ratio + self.warmup_rise * done)
        is_warmup = (step <= self.warmup_steps) & (self.warmup_steps > 0)
        return jnp.where(is_warmup, warm, self.by_epoch[epoch])


def rates_of(training: Training, steps_per_epoch: int, epochs: int, offset: int = 0) -> Rates:
    """Return the learning rates of a run.

    The table is padded to MIN_RATES epochs, or to the next power of two if there are more, so that
    runs of different lengths share a compiled step.
    """
    rates = epoch_rates(training, steps_per_epoch, epochs, offset)
    length = max(MIN_RATES, 1 << (epochs - 1).bit_length())
    return Rates(
        by_epoch=jnp.asarray(np.pad(rates, (0, length - epochs), mode="edge"), jnp.float32),
        steps_per_epoch=jnp.int32(steps_per_epoch),
        offset=jnp.int32(offset),
        full=jnp.float32(training.learning_rate),
        warmup_steps=jnp.int32(min(training.warmup_steps, LAST_STEP)),
        warmup_ratio=jnp.float32(training.warmup_ratio),
        warmup_rise=jnp.float32(1 - training.warmup_ratio),
    )


def learning_rate(training: Training, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """Return the learning rate as a function of the number of steps done."""
    return rates_of(training, steps_per_epoch, epochs).at


def decay_mask(params: Any) -> Any:
    """Return a bool per parameter: False for the scale and bias of normalization layers."""
    if not isinstance(params, Mapping):
        return True
    if set(params) == {"scale", "bias"}:
        return {name: False for name in params}
    return {name: decay_mask(child) for name, child in params.items()}


def scale_by_part(multipliers: Mapping[str, jax.Array]) -> optax.GradientTransformation:
    """Multiply updates by the factor of their part of the network; 0 freezes the part.

    This is the original's `lr_mult`, except that the original's cosine schedule ends at the same
    rate for all parts.
    """

    def scale(updates: Any, _: Any) -> Any:
        return {part: optax.tree.scale(multipliers[part], tree) for part, tree in updates.items()}

    return optax.stateless(scale)


class UpdateHyperparameters(NamedTuple):
    """Hyperparameters of the update rule, as inputs to a compiled step: float32 scalars."""

    momentum: jax.Array
    weight_decay: jax.Array
    clip_norm: jax.Array
    lr_multipliers: Mapping[str, jax.Array]  # by part of the network


def update_hyperparameters(training: Training) -> UpdateHyperparameters:
    """Return the hyperparameters of the update rule."""
    return UpdateHyperparameters(
        momentum=jnp.float32(training.momentum),
        weight_decay=jnp.float32(training.weight_decay),
        clip_norm=jnp.float32(training.clip_norm),
        lr_multipliers=jax.tree.map(jnp.float32, asdict(training.lr_multipliers)),
    )


def make_optimizer(
    training: Training,
    schedule: optax.Schedule,
    hyperparameters: UpdateHyperparameters | None = None,
    trained: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Return SGD with momentum, or AdamW. If requested, gradients are clipped by global norm first.
    Weight decay applies to every parameter, as in the original's recipes. With `no_norm_decay` it
    does not apply to normalization layers.

    Args:
      training: provides the optimizer's name, `no_norm_decay`, and whether gradients are clipped.
      schedule: learning rate by the number of steps done.
      hyperparameters: hyperparameters of the update rule; None: use the values in `training`.
      trained: function from the parameters to a bool for each: whether it is trained. The other
        parameters have neither weight decay nor momentum, and their gradients must be 0. None:
        train all.
    """
    values = update_hyperparameters(training) if hyperparameters is None else hyperparameters
    mask = decay_mask if training.no_norm_decay else None
    match training.optimizer:
        case "sgd":
            # PyTorch adds weight decay to the gradient, before the momentum.
            update = optax.chain(
                optax.add_decayed_weights(values.weight_decay, mask),
                optax.sgd(schedule, momentum=values.momentum),
            )
        case "adamw":
            update = optax.adamw(schedule, weight_decay=values.weight_decay, mask=mask)
    update = optax.chain(update, scale_by_part(values.lr_multipliers))
    if trained is not None:
        update = optax.masked(update, trained)
    if training.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(values.clip_norm), update)
    return update


def skip_update(opt_state: Any) -> Any:
    """Return the optimizer's state after a skipped update: only the schedule advances.

    The learning rate depends on the number of steps. Adam's own step count, which it uses for bias
    correction, is the number of updates.
    """

    def skip(part: Any) -> Any:
        if isinstance(part, optax.ScaleByScheduleState):
            return optax.ScaleByScheduleState(optax.safe_increment(part.count))
        return part

    return jax.tree.map(
        skip, opt_state, is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState)
    )
