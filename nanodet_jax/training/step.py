"""One training step: a pure function of state and batch."""

from typing import Any

import jax
import optax

from nanodet_jax import boxes, config
from nanodet_jax.models.detector import NanoDet
from nanodet_jax.objective import objective
from nanodet_jax.state import TrainState
from nanodet_jax.structures import Batch


def loss_and_gradients(
    variables: Any,
    batch: Batch,
    *,
    model: NanoDet,
    priors: boxes.Priors,
    assigner: config.Assigner,
    weights: config.Loss,
    axis_name: str | None = None,
) -> tuple[dict[str, jax.Array], Any, Any]:
    """Metrics, gradients of the parameters, and new batch statistics, all float32.

    With `axis_name` the batch is this device's part of a larger one: losses and gradients are
    summed over the axis (their divisors are the whole batch's), and the running statistics,
    each device's own, are averaged.
    """

    def loss_fn(params):
        predictions, updated = model.apply(
            {**variables, "params": params}, batch.images, train=True, mutable=["batch_stats"]
        )
        loss, metrics = objective(
            predictions,
            batch.ground_truth,
            priors,
            assigner=assigner,
            weights=weights,
            axis_name=axis_name,
        )
        return loss, (metrics, updated["batch_stats"])

    gradients, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(variables["params"])
    if axis_name is not None:
        gradients, metrics = jax.lax.psum((gradients, metrics), axis_name)
        batch_stats = jax.lax.pmean(batch_stats, axis_name)
    return metrics, gradients, batch_stats


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    **parts: Any,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The next state, and the metrics of this step.

    Args:
      state: donated by the caller.
      batch: B images of the size that `priors` belong to.
      optimizer, schedule: of `training.optimizer`.
      **parts: model, priors, assigner, weights and axis_name of `loss_and_gradients`.
    """
    metrics, gradients, batch_stats = loss_and_gradients(state.variables, batch, **parts)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics |= {
        "gradient_norm": optax.tree.norm(gradients),
        "learning_rate": schedule(state.step),
    }
    new_state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return new_state, metrics
