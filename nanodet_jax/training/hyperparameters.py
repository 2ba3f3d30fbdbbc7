"""Hyperparameters of a run, as inputs to its compiled step.

A run with a different learning rate, schedule, weight decay, moving average, loss weight or length
therefore reuses the compiled step. Settings that change the program are not inputs: the network,
the assigner, the optimizer, the number of micro-batches, and whether gradients are clipped or a
moving average is kept.
"""

from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nanodet_jax.config import Config, Training
from nanodet_jax.data.run_length import RunLength
from nanodet_jax.training.optimizer import (
    LAST_STEP,
    Rates,
    UpdateHyperparameters,
    rates_of,
    update_hyperparameters,
)
from nanodet_jax.training.step import EmaDecay


class Hyperparameters(NamedTuple):
    """Hyperparameters of a run, as inputs to its compiled step."""

    rates: Rates
    update: UpdateHyperparameters
    ema: EmaDecay
    detach_step: jax.Array  # int32
    loss: dict[str, Any]  # float32 weights, by the field names of `config.Loss`


def hyperparameters_of(config: Config, training: Training, length: RunLength) -> Hyperparameters:
    """Return the hyperparameters of a run.

    Args:
      config: provides the loss weights.
      training: `config.training`, with its learning rate scaled to the batch size.
      length: length of the run in steps and epochs.
    """
    return Hyperparameters(
        rates=rates_of(training, length.steps_per_epoch, length.schedule_epochs, length.offset),
        update=update_hyperparameters(training),
        ema=EmaDecay(jnp.float32(training.ema_decay), jnp.float32(1 - training.ema_decay)),
        detach_step=jnp.int32(
            min(training.detach_epoch * length.steps_per_epoch - length.offset, LAST_STEP)
        ),
        loss=jax.tree.map(jnp.float32, asdict(config.loss)),
    )
