"""One training step: a pure function of state and batch."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from nanodet_jax.losses.criterion import Criterion, Divisors
from nanodet_jax.models.nanodet import NanoDet, priors_of
from nanodet_jax.state import TrainState
from nanodet_jax.structures import Batch, Predictions
from nanodet_jax.training.optimizer import skip_update

Tree = Any  # nested dicts of arrays: parameters, batch statistics, or gradients
Metrics = dict[str, Float[Array, ""]]


def loss_and_gradients(
    variables: dict[str, Tree],
    batch: Batch,
    *,
    model: NanoDet,
    criterion: Criterion,
    detach: jax.Array | bool = False,
    accumulate: int = 1,
    axis_name: str | None = None,
    key: jax.Array | None = None,
) -> tuple[Metrics, Tree, Tree]:
    """Compute metrics, gradients of the parameters, and new batch statistics, all in float32.

    Losses and gradients are summed over micro-batches and devices, with the divisors of the whole
    batch. Only batch norm depends on the split. It normalizes within a micro-batch on one device,
    or, with `config.model.sync_batch_norm`, within a micro-batch over all devices.

    Args:
      variables: `params` and `batch_stats`.
      batch: B images.
      model: network to train.
      criterion: assignment and loss. Its priors are replaced by those for the size of the images.
      detach: whether the guidance's gradients stop before the backbone and the neck; may be
        traced.
      accumulate: number of micro-batches that the batch is split into, to save memory; must divide
        B. Each micro-batch updates the running statistics. Some divisors depend on the predictions,
        so an extra forward pass over all micro-batches comes first and costs time.
      axis_name: mapped axis, if the batch is one device's part of a larger batch. Losses and
        gradients are summed over this axis, and running statistics are averaged over it.
      key: random key for dropout; required if `model.is_random`.
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    criterion = replace(criterion, priors=priors_of(model.model, batch.images.shape[1:3]))
    if key is not None and axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def forward(
        params: Tree, batch_stats: Tree, batch: Batch, key: jax.Array | None
    ) -> tuple[tuple[Predictions, ...], dict[str, Tree]]:
        padded_sizes = batch.ground_truth.padded_size
        if padded_sizes is not None:
            # As in mmdetection, all images are padded to the largest height and width among them.
            largest = jnp.max(padded_sizes, axis=0, keepdims=True)
            padded_sizes = jnp.broadcast_to(largest, padded_sizes.shape)
        output = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.images,
            detach,
            padded_sizes=padded_sizes,
            axis_name=axis_name,
            method="branches",
            mutable=["batch_stats"],
            rngs=None if key is None else {"dropout": key},
        )
        return cast(tuple[tuple[Predictions, ...], dict[str, Tree]], output)

    def gradients_of(
        batch: Batch,
        key: jax.Array | None,
        batch_stats: Tree,
        divisors: Divisors | None = None,
        axis_name: str | None = None,
    ) -> tuple[Metrics, Tree, Tree]:
        def loss_fn(params: Tree) -> tuple[jax.Array, tuple[Metrics, Tree]]:
            branches, updated = forward(params, batch_stats, batch, key)
            loss, metrics = criterion(
                branches, batch.ground_truth, divisors=divisors, axis_name=axis_name
            )
            return loss, (metrics, updated["batch_stats"])

        gradients, (metrics, updated) = jax.grad(loss_fn, has_aux=True)(params)
        return metrics, gradients, updated

    def divisors_of(micro_batch: tuple[Batch, jax.Array | None]) -> Divisors:
        batch, key = micro_batch
        branches, _ = forward(params, batch_stats, batch, key)
        return criterion.divisors(branches, batch.ground_truth)

    if accumulate == 1:
        metrics, gradients, batch_stats = gradients_of(batch, key, batch_stats, axis_name=axis_name)
    else:
        micro_batches = (
            jax.tree.map(lambda leaf: leaf.reshape(accumulate, -1, *leaf.shape[1:]), batch),
            None if key is None else jax.random.split(key, accumulate),
        )
        total = partial(jax.tree.map, partial(jnp.sum, axis=0))
        divisors = total(jax.lax.map(divisors_of, micro_batches))
        if axis_name is not None:
            divisors = jax.lax.psum(divisors, axis_name)

        def add(
            sums: tuple[Tree, Tree], micro_batch: tuple[Batch, jax.Array | None]
        ) -> tuple[tuple[Tree, Tree], Metrics]:
            gradients, batch_stats = sums
            metrics, more, batch_stats = gradients_of(*micro_batch, batch_stats, divisors)
            return (optax.tree.add(gradients, more), batch_stats), metrics

        start = optax.tree.zeros_like(params), batch_stats
        (gradients, batch_stats), metrics = jax.lax.scan(add, start, micro_batches)
        metrics = total(metrics)
    if axis_name is not None:
        gradients, metrics = jax.lax.psum((gradients, metrics), axis_name)
        batch_stats = jax.lax.pmean(batch_stats, axis_name)
    return metrics, gradients, batch_stats


class EmaDecay(NamedTuple):
    """Decay of a moving average, as an input to a compiled step.

    `rest` is 1 - decay, subtracted in float64: in float32, 1 - 0.9998 is off by 0.01 %.
    """

    decay: Float[Array, ""]
    rest: Float[Array, ""]


def ema_weight(step: Int[Array, "*n"], decay: float | EmaDecay) -> Float[Array, "*n"]:
    """Return the weight of the new values in the moving average after `step` steps.

    As in the original, it falls from nearly 1 to 1 - decay, so the average follows the new values
    closely at first.
    """
    early = jnp.exp(-(1 + step) / 2000)
    if isinstance(decay, EmaDecay):
        return decay.decay * early + decay.rest
    return decay * early + (1 - decay)


def update_ema(ema: Tree, variables: Tree, step: Int[Array, ""], decay: float | EmaDecay) -> Tree:
    """Return the moving average of parameters and batch statistics after `step` steps."""
    weight = ema_weight(step, decay)
    return jax.tree.map(lambda old, new: old * (1 - weight) + new * weight, ema, variables)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: NanoDet,
    criterion: Criterion,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float | EmaDecay = 0.0,
    detach_step: int | Int[Array, ""] = 0,
    accumulate: int = 1,
    axis_name: str | None = None,
    seed: int = 0,
) -> tuple[TrainState, Metrics]:
    """Compute the next state and the metrics of this step.

    If the loss, a gradient or a batch statistic is not finite, the update is skipped: everything
    stays unchanged except the step number, and with it the learning rate. The metric `skipped` is
    then 1, and otherwise 0.

    Args:
      state: donated by the caller.
      batch: B images.
      model, criterion, accumulate, axis_name: as for `loss_and_gradients`.
      optimizer, schedule: from `training.optimizer`.
      ema_decay: decay of the moving average, if the state has one.
      detach_step: first step at which the guidance no longer trains the backbone and the neck.
      seed: seed of dropout. The random key of a step depends on it and on the step number.
    """
    metrics, gradients, batch_stats = loss_and_gradients(
        state.variables,
        batch,
        model=model,
        criterion=criterion,
        detach=state.step >= detach_step,
        accumulate=accumulate,
        axis_name=axis_name,
        key=jax.random.fold_in(jax.random.key(seed), state.step) if model.is_random else None,
    )
    gradient_norm = optax.tree.norm(gradients)
    # A sum is finite only if all of its terms are. This sum includes the batch statistics, because
    # a pixel so bright that its square is infinite affects only the running variances.
    finite = jnp.isfinite(metrics["loss"] + gradient_norm + optax.tree.sum(batch_stats))
    metrics |= {
        "gradient_norm": gradient_norm,
        "learning_rate": schedule(state.step),
        "skipped": 1.0 - finite.astype(jnp.float32),
    }

    def updated(state: TrainState, gradients: Tree, batch_stats: Tree) -> TrainState:
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = replace(
            state,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if state.ema is None:
            return new_state
        ema = update_ema(state.ema, new_state.variables, state.step + 1, ema_decay)
        return replace(new_state, ema=ema)

    def skipped(state: TrainState, *_: Tree) -> TrainState:
        return replace(state, opt_state=skip_update(state.opt_state))

    # Use a branch: XLA generates three times as much code if each array is selected separately.
    new_state = jax.lax.cond(finite, updated, skipped, state, gradients, batch_stats)
    return replace(new_state, step=state.step + 1), metrics
