"""What a run leaves in `checkpoints/`: the newest state, the best, and every N epochs one."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from nanodet_jax.errors import UserError
from nanodet_jax.state import TrainState

METRIC = "AP"

# Saves between evaluations have no score, by intention; the manager warns of each.
logging.get_absl_logger().addFilter(lambda record: "tracked_metric" not in str(record.msg))


class Checkpoints:
    """The `checkpoints/` folder of a workdir, by step.

    A checkpoint has two parts: `variables`, the averaged ones where there is an average, for
    inference, and `training`, what else the next step depends on. Saving goes on in the
    background; a checkpoint gets its name only once it is whole.
    """

    def __init__(self, workdir: Path, keep_every_steps: int = 0):
        kept: list[Any] = [
            checkpoint_managers.LatestN(1),
            checkpoint_managers.BestN(
                get_metric_fn=_score,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if keep_every_steps:
            kept.append(checkpoint_managers.EveryNSteps(keep_every_steps))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            best_fn=_score,  # without it the manager writes no metrics, which BestN goes by
        )
        self._manager = ocp.CheckpointManager(workdir.absolute() / "checkpoints", options=options)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None before the first."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest AP, None where none was evaluated."""
        scores = {step: self.metrics(step) for step in self._manager.all_steps()}
        evaluated = {step: metrics[METRIC] for step, metrics in scores.items() if metrics}
        return max(evaluated, key=lambda step: (evaluated[step], step)) if evaluated else None

    def metrics(self, step: int) -> dict[str, Any] | None:
        """What was measured when `step` was saved, or None."""
        return self._manager.metrics(step)

    def save(
        self, state: TrainState, metrics: dict[str, Any] | None = None, replace: bool = False
    ) -> None:
        """Begin to save; a step that is saved already is left as it is, or replaced."""
        step = int(state.step)
        if step in self._manager.all_steps():
            if not replace:
                return
            self._manager.delete(step)
        # Copies: the next step is going to overwrite the donated buffers.
        host = jax.tree.map(lambda leaf: np.array(leaf), state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(part) for name, part in _split(host).items()}
            ),
            metrics=metrics,
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`; `like` has its structure, shapes and dtypes."""
        parts = _split(like)
        restored = self._restore(
            step, **{name: ocp.args.StandardRestore(_host(part)) for name, part in parts.items()}
        )
        kept, training = restored["variables"], restored["training"]
        averaged = like.average is not None
        return TrainState(
            step=training["step"],
            **(training["variables"] if averaged else kept),
            average=kept if averaged else None,
            opt_state=training["opt_state"],
        )

    def restore_variables(self, step: int, like: Any) -> Any:
        """Parameters and batch statistics to infer with, saved at `step`; averaged ones if any."""
        return self._restore(step, variables=ocp.args.StandardRestore(_host(like)))["variables"]

    def _restore(self, step: int, **parts: Any) -> Any:
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**parts))
            for name, part in parts.items():  # Orbax compares structures, but no shapes
                jax.tree.map(_check_shape, restored[name], part.item)
            return restored
        except (ValueError, KeyError, TypeError) as error:
            where = f"{self._manager.directory}/{step}"
            first_line = str(error).strip().splitlines()[0]
            raise UserError(
                f"{where}: does not fit this config's model or optimizer ({first_line}); use the "
                "workdir's own config, or another workdir"
            ) from error

    def wait(self) -> None:
        """Return once everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is on disk, and let go of it."""
        self._manager.close()


def _split(state: TrainState) -> dict[str, Any]:
    training = {"opt_state": state.opt_state, "step": state.step}
    if state.average is not None:
        training["variables"] = state.variables
    return {"variables": state.inference_variables, "training": training}


def _score(metrics: dict[str, Any]) -> float:
    return metrics[METRIC]


def _check_shape(saved: Any, wanted: Any) -> None:
    if saved.shape != wanted.shape:
        raise ValueError(f"an array of shape {saved.shape} in place of {wanted.shape}")


def _host(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
