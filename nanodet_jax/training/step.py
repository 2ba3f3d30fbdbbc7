"""One training step: a pure function of state and batch."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nanodet_jax import boxes, config
from nanodet_jax.losses.criterion import Divisors, batch_terms, objective
from nanodet_jax.models.nanodet import NanoDet
from nanodet_jax.state import TrainState
from nanodet_jax.structures import Batch
from nanodet_jax.training.optimizer import skip_update


def loss_and_gradients(
    variables: Any,
    batch: Batch,
    *,
    model: NanoDet,
    priors: boxes.Priors,
    assigner: config.Assigner,
    compat: config.Compat,
    weights: config.Loss,
    detach: jax.Array | bool = False,
    axis_name: str | None = None,
    accumulate: int = 1,
) -> tuple[dict[str, jax.Array], Any, Any]:
    """Metrics, gradients of the parameters, and new batch statistics, all float32.

    With `detach` the guidance's gradients stop short of backbone and neck; it may be traced.
    With `axis_name` the batch is this device's part of a larger one: losses and gradients are
    summed over the axis (their divisors are the whole batch's), and the running statistics are
    averaged: each device's own, or with `config.Model.sync_batch_norm` the whole batch's in each.

    With `accumulate` the batch is worked off in that many micro-batches, one after the other, in
    the memory of one. As over devices, losses and gradients are sums whose divisors are the whole
    batch's, and only batch norm tells the difference: it normalises within a micro-batch, with
    `sync_batch_norm` within all devices' parts of one; the running statistics take one micro-batch
    after the other. Some divisors depend on the predictions, so that a forward pass over all
    micro-batches comes first: its time is the price.
    """
    assigned: dict[str, Any] = {"priors": priors, "assigner": assigner, "compat": compat}
    params, batch_stats = variables["params"], variables["batch_stats"]

    def forward(params, batch_stats, images):
        return model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            detach,
            axis_name=axis_name,
            method="branches",
            mutable=["batch_stats"],
        )

    def gradients_of(batch: Batch, batch_stats: Any, **divisors: Any):
        def loss_fn(params):
            branches, updated = forward(params, batch_stats, batch.images)
            loss, metrics = objective(
                branches, batch.ground_truth, **assigned, weights=weights, **divisors
            )
            return loss, (metrics, updated["batch_stats"])

        gradients, (metrics, updated) = jax.grad(loss_fn, has_aux=True)(params)
        return metrics, gradients, updated

    def divisors_of(batch: Batch) -> Divisors:
        branches, _ = forward(params, batch_stats, batch.images)
        return batch_terms(branches, batch.ground_truth, **assigned)[1]

    if accumulate == 1:
        metrics, gradients, batch_stats = gradients_of(batch, batch_stats, axis_name=axis_name)
    else:
        parts = jax.tree.map(lambda leaf: leaf.reshape(accumulate, -1, *leaf.shape[1:]), batch)
        total = partial(jax.tree.map, partial(jnp.sum, axis=0))
        divisors = total(jax.lax.map(divisors_of, parts))
        if axis_name is not None:
            divisors = jax.lax.psum(divisors, axis_name)

        def add(sums, part):
            gradients, batch_stats = sums
            metrics, more, batch_stats = gradients_of(part, batch_stats, divisors=divisors)
            return (optax.tree.add(gradients, more), batch_stats), metrics

        start = optax.tree.zeros_like(params), batch_stats
        (gradients, batch_stats), metrics = jax.lax.scan(add, start, parts)
        metrics = total(metrics)
    if axis_name is not None:
        gradients, metrics = jax.lax.psum((gradients, metrics), axis_name)
        batch_stats = jax.lax.pmean(batch_stats, axis_name)
    return metrics, gradients, batch_stats


def ema_share(step: jax.Array, decay: float) -> jax.Array:
    """Share of the new values in the average after `step` steps, as the original ramps it.

    Nearly 1 at first, so that the average follows; 1 - decay in the end.
    """
    return decay * jnp.exp(-(1 + step) / 2000) + (1 - decay)


def moved_average(average: Any, variables: Any, step: jax.Array, decay: float) -> Any:
    """Exponential moving average of parameters and batch statistics after `step` steps."""
    share = ema_share(step, decay)
    return jax.tree.map(lambda old, new: old * (1 - share) + new * share, average, variables)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float = 0.0,
    detach_step: int = 0,
    **parts: Any,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The next state, and the metrics of this step.

    Where loss, gradient or batch statistics are not finite, the update is skipped: everything but
    the number of the step, and with it the learning rate, stays as it was, and the metric `skipped`
    is 1, which is 0 otherwise.

    Args:
      state: donated by the caller.
      batch: B images of the size that `priors` belong to.
      optimizer, schedule: of `training.optimizer`.
      ema_decay: of the average, if the state has one.
      detach_step: first step at which the guidance no longer trains backbone and neck.
      **parts: model, priors, assigner, compat, weights, axis_name and accumulate of
        `loss_and_gradients`.
    """
    detach = state.step >= detach_step
    metrics, gradients, batch_stats = loss_and_gradients(
        state.variables, batch, detach=detach, **parts
    )
    gradient_norm = optax.tree.norm(gradients)
    # The sum is finite if all of its terms are. A pixel so bright that its square is infinite shows
    # in the running variances alone.
    finite = jnp.isfinite(metrics["loss"] + gradient_norm + optax.tree.sum(batch_stats))
    metrics |= {
        "gradient_norm": gradient_norm,
        "learning_rate": schedule(state.step),
        "skipped": 1.0 - finite,
    }

    def updated(state: TrainState, gradients: Any, batch_stats: Any) -> TrainState:
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = replace(
            state,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if state.ema is None:
            return new_state
        average = moved_average(state.ema, new_state.variables, state.step + 1, ema_decay)
        return replace(new_state, ema=average)

    def skipped(state: TrainState, *_: Any) -> TrainState:
        return replace(state, opt_state=skip_update(state.opt_state))

    # A branch: with a choice per array instead, XLA makes three times the code.
    new_state = jax.lax.cond(finite, updated, skipped, state, gradients, batch_stats)
    return replace(new_state, step=state.step + 1), metrics
