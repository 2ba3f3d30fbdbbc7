"""The `checkpoints/` folder of a run: the newest checkpoints, the best, and one every N epochs.

A checkpoint contains checksums of its arrays and metrics. Its content is used only if it equals
what was saved, bit for bit. Orbax writes and deletes checkpoints (`orbax_manager`). This package
reads them itself (`checkpoint_restore`), because they may come from an untrusted source.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from nanodet_jax.errors import UserError
from nanodet_jax.files import make_folder
from nanodet_jax.io import checksums
from nanodet_jax.io.checkpoint_files import refuse_links, saved_steps
from nanodet_jax.io.checkpoint_metrics import CheckpointMetrics
from nanodet_jax.io.checkpoint_restore import (
    RECORD,
    VERSION,
    DamagedCheckpointError,
    one_line,
    restore,
)
from nanodet_jax.io.orbax_manager import open_manager
from nanodet_jax.runtime import distributed
from nanodet_jax.state import TrainState
from nanodet_jax.terminal import say

CHECKPOINTS = "checkpoints"  # folder in a workdir


class Checkpoints:
    """The checkpoints of a workdir, by step.

    A checkpoint has three parts: `variables`, the parameters and batch statistics for inference
    (the averaged ones, if the run keeps an average); `training`, everything else that the next step
    depends on; and `record`, the checksums of all arrays. Saving continues in the background, and a
    checkpoint gets its name only when it is complete. Metrics are added later, as `metrics.json`.

    Args:
      workdir: folder of the run.
      writing: False to read a run that may be in progress, without changing the folder.

    Attributes:
      keep: returns whether the checkpoint of a step must never be deleted. Set it before the first
        save.

    Raises:
      UserError: if the folder cannot be created or read, or contains a symbolic link.
    """

    def __init__(self, workdir: Path, writing: bool = True):
        self.folder = workdir.absolute() / CHECKPOINTS
        self._metrics = CheckpointMetrics(self.folder)
        self.keep: Callable[[int], bool] = lambda step: False
        self._known_steps: set[int] = set()  # saved or restored by this object
        self._manager: ocp.CheckpointManager | None = None  # opened by the first save
        if writing:
            make_folder(self.folder)
        refuse_links(self.folder)

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint, or None if there is none."""
        return max(self._steps(), default=None)

    def best_step(self) -> int | None:
        """Return the step of the checkpoint with the highest AP, or None if none was evaluated."""
        return self._metrics.best_of(self._steps())

    def metrics(self, step: int) -> dict[str, Any] | None:
        """Return the metrics saved for a step, or None if they are missing or damaged."""
        return self._metrics.get(step)

    def save(self, state: TrainState) -> None:
        """Start saving a state, unless this object has already saved or restored its step.

        Raises:
          UserError: if this or the previous checkpoint cannot be written, or if another process
            has saved this step.
        """
        step = int(state.step)
        if step in self._known_steps:
            return
        path = self.folder / str(step)
        if os.path.lexists(path):
            raise UserError(
                f"{path}: exists, but was not saved by this run; another run may be writing to "
                "this workdir: stop one of them, or use a different --workdir"
            )
        # Copy the state, because the next step overwrites the donated buffers.
        parts = _split(jax.tree.map(lambda leaf: np.array(leaf), state))
        record = {"version": VERSION, "arrays": checksums.describe_arrays(parts)}
        items = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
        self._metrics.forget(step)
        with self._reporting_errors(f"checkpoint {step} cannot be written"):
            self._open_manager().save(
                step,
                args=ocp.args.Composite(
                    **items, **{RECORD: ocp.args.JsonSave(checksums.add_digest(record))}
                ),
            )
        self._known_steps.add(step)

    def save_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """Add metrics to a checkpoint, once it is on disk.

        Raises:
          UserError: if the checkpoint or the metrics cannot be written.
        """
        self.wait()
        self._metrics.save(step, metrics, writing=distributed.is_writer())

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Return the state saved at `step`, with the structure, shapes and dtypes of `like`.

        Raises:
          DamagedCheckpointError: if the content is not what was saved.
          UserError: if the state belongs to a different model or optimizer.
        """
        restored = self._restore(step, _split(like))
        kept, training = restored["variables"], restored["training"]
        averaged = like.ema is not None
        return TrainState(
            step=training["step"],
            **(training["variables"] if averaged else kept),
            ema=kept if averaged else None,
            opt_state=training["opt_state"],
        )

    def restore_latest(self, like: TrainState) -> TrainState:
        """Return the newest state that is not damaged; see `restore`.

        Newer checkpoints that are damaged are reported and moved to `checkpoints/damaged_STEP`.

        Raises:
          UserError: if all are damaged, or the newest belongs to a different model or optimizer.
        """
        damaged = []
        while (step := self.latest_step()) is not None:
            try:
                return self.restore(step, like)
            except DamagedCheckpointError as error:
                say(f"note: {error}")
                damaged.append(str(self._set_aside(step)))
        raise UserError(
            f"{self.folder}: all checkpoints are damaged ({', '.join(damaged)}); copy one into "
            "this folder from a backup, or use a different --workdir to start again"
        )

    def restore_variables(self, step: int, like: Any) -> Any:
        """Return the parameters and batch statistics for inference that were saved at `step`.

        Raises:
          DamagedCheckpointError, UserError: as in `restore`.
        """
        return self._restore(step, {"variables": like})["variables"]

    def restore_best_variables(self, like: Any) -> Any | None:
        """Return the variables for inference of the best checkpoint that is not damaged.

        If no checkpoint was evaluated, the newest one counts as the best. Damaged checkpoints are
        reported.

        Returns:
          The variables, or None if there is no checkpoint.

        Raises:
          UserError: if all are damaged, or the best one belongs to a different model.
        """
        steps = set(self._steps())
        if not steps:
            return None
        while steps:
            step = self._metrics.best_of(steps)
            step = max(steps) if step is None else step
            try:
                return self.restore_variables(step, like)
            except DamagedCheckpointError as error:
                say(f"note: {error}")
                steps.remove(step)
        raise UserError(f"{self.folder}: all checkpoints are damaged; copy one from a backup")

    def wait(self) -> None:
        """Wait until everything is on disk.

        Raises:
          UserError: if a checkpoint cannot be written.
        """
        with self._reporting_errors("the last checkpoint cannot be written"):
            if self._manager:
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is on disk, and release all resources."""
        with self._reporting_errors("the last checkpoint cannot be written"):
            if self._manager:
                self._manager.close()
                self._manager = None

    def _steps(self) -> Sequence[int]:
        # The manager also knows the checkpoint that is being written.
        return self._manager.all_steps() if self._manager else saved_steps(self.folder)

    def _open_manager(self) -> ocp.CheckpointManager:
        if not self._manager:
            self._manager = open_manager(self.folder, self._metrics.best_of, self.keep)
        return self._manager

    def _restore(self, step: int, parts: dict[str, Any]) -> Any:
        restored = restore(self.folder / str(step), parts)
        self._known_steps.add(step)
        return restored

    def _set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that its step can be saved again."""
        target = self.folder / f"damaged_{step}"
        number = 1
        while os.path.lexists(target):
            number += 1
            target = self.folder / f"damaged_{step}_{number}"
        self.close()  # the manager lists the folder when it is opened again
        with self._reporting_errors(f"checkpoint {step} is damaged and cannot be moved aside"):
            distributed.gather(None)  # wait until every process has read the checkpoint
            if distributed.is_writer():
                (self.folder / str(step)).rename(target)
            distributed.gather(None)  # and until it is moved
        return target

    @contextlib.contextmanager
    def _reporting_errors(self, what: str) -> Iterator[None]:
        """Convert any error of the file system, Orbax or TensorStore to a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types
            raise UserError(
                f"{self.folder}: {what}: {one_line(error)}; earlier checkpoints are unchanged, "
                "and the same command resumes from the newest one"
            ) from error


def _split(state: TrainState) -> dict[str, Any]:
    """Return the arrays of a state, grouped into the parts of a checkpoint."""
    training = {"opt_state": state.opt_state, "step": state.step}
    if state.ema is not None:
        training["variables"] = state.variables
    return {"variables": state.inference_variables, "training": training}
