"""What a run leaves in `checkpoints/`: the newest states, the best, and every N epochs one.

Nothing that is read from a checkpoint is believed before it is the same, to the bit, as what was
saved: checksums of all arrays and of the metrics are part of it. Orbax writes and deletes
checkpoints. What is in them is read by `checkpoint_files` and `checkpoint_arrays`.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from nanodet_jax.errors import UserError, first_line
from nanodet_jax.files import make_folder
from nanodet_jax.io import checksums
from nanodet_jax.io.checkpoint_arrays import read_arrays
from nanodet_jax.io.checkpoint_files import (
    check_arrays,
    check_folder,
    read_record,
    refuse_links,
    saved_steps,
)
from nanodet_jax.io.checkpoint_metrics import CheckpointMetrics
from nanodet_jax.runtime import distributed
from nanodet_jax.state import TrainState
from nanodet_jax.terminal import printable, say

CHECKPOINTS = "checkpoints"  # folder in a workdir
NEWEST = 2  # of which the older one is there in case the newest is damaged
RECORD = "record"
VERSION = 1  # of what a checkpoint holds
LONGEST_LINE = 120  # of a library's message within ours


OS_ERROR = re.compile(r"os_error_code='(\d{1,9})'")  # in TensorStore's messages


class Damaged(UserError):
    """A checkpoint that is not what was saved."""


class Checkpoints:
    """The `checkpoints/` folder of a workdir, by step.

    A checkpoint has three parts: `variables`, the averaged ones where there is an average, for
    inference; `training`, what else the next step depends on; and `record`, the checksums of all
    arrays. Saving goes on in the background; a checkpoint gets its name only once it is whole.
    What is measured afterwards is added as `metrics.json`.

    Args:
      workdir: of the run.
      keep_every_steps: checkpoints of these steps are never deleted; 0: none.
      writing: False to look at a run that may be going on: nothing in the folder is changed.

    Raises:
      UserError: if the folder cannot be made or read, or holds a symbolic link.
    """

    def __init__(self, workdir: Path, keep_every_steps: int = 0, writing: bool = True):
        self.folder = workdir.absolute() / CHECKPOINTS
        self._metrics = CheckpointMetrics(self.folder)
        self._keep_every_steps = keep_every_steps
        self._own: set[int] = set()  # steps that were saved or restored here
        self._manager: ocp.CheckpointManager | None = None  # made for the first save
        if writing:
            make_folder(self.folder)
        refuse_links(self.folder)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None before the first."""
        return max(self._steps(), default=None)

    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest AP, None where none was evaluated."""
        return self._metrics.best(self._steps())

    def metrics(self, step: int) -> dict[str, Any] | None:
        """What `rate` noted of a step; None if nothing was, or if that is damaged."""
        return self._metrics.of(step)

    def save(self, state: TrainState) -> None:
        """Begin to save; a step that was saved or restored by this process is left as it is.

        Raises:
          UserError: if this checkpoint, or the one before it, could not be written, or another
            process has saved this step.
        """
        step = int(state.step)
        if step in self._own:
            return
        path = self.folder / str(step)
        if os.path.lexists(path):
            raise UserError(
                f"{path}: exists, but was not saved by this run; another run may be writing to "
                "this workdir: stop one of them, or give another --workdir"
            )
        # Copies: the next step is going to overwrite the donated buffers.
        parts = _split(jax.tree.map(lambda leaf: np.array(leaf), state))
        record = {"version": VERSION, "arrays": checksums.of_arrays(parts)}
        items = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
        self._metrics.begin(step)
        with self._told(f"checkpoint {step} cannot be written"):
            self._open_manager().save(
                step,
                args=ocp.args.Composite(
                    **items, **{RECORD: ocp.args.JsonSave(checksums.signed(record))}
                ),
            )
        self._own.add(step)

    def rate(self, step: int, metrics: dict[str, Any]) -> None:
        """Note what was measured of a step that was saved, once that is on disk.

        Raises:
          UserError: if the one or the other cannot be written.
        """
        self.wait()
        self._metrics.note(step, metrics, writing=distributed.is_writer())

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`; `like` has its structure, shapes and dtypes.

        Raises:
          Damaged: if it is not what was saved.
          UserError: if it is the state of another model or optimizer.
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

    def restore_newest(self, like: TrainState) -> TrainState:
        """The newest state that is whole, as `restore` gives it.

        Damaged checkpoints that are newer are named and moved to `checkpoints/damaged_STEP`.

        Raises:
          UserError: if there is none, or the newest is of another model or optimizer.
        """
        damaged = []
        while (step := self.latest_step()) is not None:
            try:
                return self.restore(step, like)
            except Damaged as error:
                say(f"note: {error}")
                damaged.append(str(self._set_aside(step)))
        raise UserError(
            f"{self.folder}: no checkpoint is whole ({', '.join(damaged)}); copy one there "
            "from elsewhere, or give another --workdir to start anew"
        )

    def restore_variables(self, step: int, like: Any) -> Any:
        """Parameters and batch statistics to infer with, saved at `step`; averaged ones if any.

        Raises:
          Damaged, UserError: as `restore`.
        """
        return self._restore(step, {"variables": like})["variables"]

    def restore_best_variables(self, like: Any) -> Any | None:
        """Those of the best checkpoint that is whole, else of the newest; None before the first.

        Damaged checkpoints are named.

        Raises:
          UserError: if all are damaged, or of another model.
        """
        steps = set(self._steps())
        named = bool(steps)
        while steps:
            step = self._metrics.best(steps)
            step = max(steps) if step is None else step
            try:
                return self.restore_variables(step, like)
            except Damaged as error:
                say(f"note: {error}")
                steps.remove(step)
        if named:
            raise UserError(f"{self.folder}: no checkpoint is whole")
        return None

    def wait(self) -> None:
        """Return once everything is on disk.

        Raises:
          UserError: if it cannot be written.
        """
        with self._told("the last checkpoint cannot be written"):
            if self._manager:
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait as `wait` does, and let go of everything."""
        with self._told("the last checkpoint cannot be written"):
            if self._manager:
                self._manager.close()
                self._manager = None

    def _steps(self) -> Sequence[int]:
        # Orbax also knows the one that is being written.
        return self._manager.all_steps() if self._manager else saved_steps(self.folder)

    def _open_manager(self) -> ocp.CheckpointManager:
        if not self._manager:
            kept: list[Any] = [checkpoint_managers.LatestN(NEWEST), _Best(self._metrics)]
            if self._keep_every_steps:
                kept.append(checkpoint_managers.EveryNSteps(self._keep_every_steps))
            options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,  # what a crash left half-written
                create=False,
                step_name_format=_Steps(),
                lightweight_initialize=True,  # nothing in the folders of steps is read
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def _record(self, step: int) -> dict[str, Any]:
        """Descriptions of all arrays that were saved at a step."""
        where = f"{self.folder}/{step}"
        try:
            record = read_record(self.folder / str(step) / RECORD / "metadata")
            if record["version"] == VERSION:
                return check_arrays(record)
        except (OSError, ValueError) as error:
            reason = f"its {RECORD} cannot be read: {_line(error)}"
            raise Damaged(f"{where}: is damaged ({reason})") from error
        raise UserError(
            f"{where}: has version {printable(str(record['version']), 20)} of the format, this "
            f"program reads {VERSION}; use the nanodet_jax that wrote it"
        )

    def _restore(self, step: int, parts: dict[str, Any]) -> Any:
        """Parts of a checkpoint, like `parts`.

        The arrays are those of `parts`: what the files say only decides whether they are accepted.
        """
        folder = self.folder / str(step)
        wanted = checksums.named(parts)
        size = sum(
            math.prod(like.shape) * np.dtype(like.dtype).itemsize for like in wanted.values()
        )
        try:
            check_folder(folder, len(wanted), size)
        except (OSError, ValueError) as error:
            raise Damaged(f"{folder}: is damaged ({_line(error)})") from error
        saved = {
            name: about
            for name, about in self._record(step).items()
            if name.partition("/")[0] in parts
        }
        difference = checksums.difference_in_shape(saved, parts)
        if difference:
            raise UserError(
                f"{folder}: does not fit this config's model or optimizer ({difference}); use the "
                "workdir's own config, or another workdir"
            )
        try:
            arrays = read_arrays(folder, wanted)
        except ValueError as error:
            raise Damaged(f"{folder}: is damaged ({_line(error)})") from error
        restored = jax.tree.unflatten(jax.tree.structure(parts), arrays.values())
        difference = checksums.difference(saved, restored)
        if difference:
            raise Damaged(f"{folder}: is damaged ({difference})")
        self._own.add(step)
        return restored

    def _set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that the step can be saved again."""
        place = self.folder / f"damaged_{step}"
        number = 1
        while os.path.lexists(place):
            number += 1
            place = self.folder / f"damaged_{step}_{number}"
        self.close()  # Orbax lists the folder when it is opened again
        with self._told(f"checkpoint {step} is damaged and cannot be moved aside"):
            if distributed.is_writer():
                (self.folder / str(step)).rename(place)
            distributed.gather(None)  # all have seen the damage, and now see it gone
        return place

    @contextlib.contextmanager
    def _told(self, what: str):
        """Turn whatever goes wrong with the disk into a line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore have many kinds
            raise UserError(
                f"{self.folder}: {what}: {_line(error)}; earlier checkpoints are as they were, "
                "and the same command goes on from them"
            ) from error


class _Best(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint with the highest AP."""

    def __init__(self, metrics: CheckpointMetrics):
        self._metrics = metrics

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = self._metrics.best(info.step for info in checkpoints)
        return [info.step == best for info in checkpoints]


class _Steps(ocp.path.step.NameFormat):
    """Folders of steps as `saved_steps` lists them, so that Orbax agrees with us on every name."""

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path: Any) -> Iterator[ocp.path.step.Metadata]:
        return (self._metadata(base_path, step) for step in saved_steps(Path(base_path)))

    def find_step(self, base_path: Any, step: int) -> ocp.path.step.Metadata:
        if step not in saved_steps(Path(base_path)):
            raise ValueError(f"{base_path}/{step} does not exist")
        return self._metadata(base_path, step)

    def _metadata(self, base_path: Any, step: int) -> ocp.path.step.Metadata:
        return ocp.path.step.Metadata(step=step, path=epath.Path(base_path) / str(step))


def _split(state: TrainState) -> dict[str, Any]:
    training = {"opt_state": state.opt_state, "step": state.step}
    if state.ema is not None:
        training["variables"] = state.variables
    return {"variables": state.inference_variables, "training": training}


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := OS_ERROR.search(str(error)):
        return os.strerror(int(code[1]))
    line = printable(first_line(error), 10 * LONGEST_LINE)
    # TensorStore begins with what it was about to do, and ends with what the system said to that.
    return line if len(line) <= LONGEST_LINE else f"... {line[-LONGEST_LINE:]}"
