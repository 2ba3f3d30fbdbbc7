"""What a run leaves in `checkpoints/`: the newest states, the best, and every N epochs one.

Nothing that is read from a checkpoint is believed before it is the same, to the bit, as what was
saved: digests of all arrays and of the metrics are part of it.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from nanodet_jax import digests, hosts
from nanodet_jax.errors import UserError, first_line
from nanodet_jax.ratings import Ratings
from nanodet_jax.state import TrainState
from nanodet_jax.terminal import say

CHECKPOINTS = "checkpoints"  # folder in a workdir
NEWEST = 2  # of which the older one is there in case the newest is damaged
RECORD = "record"
VERSION = 1  # of what a checkpoint holds
LONGEST_LINE = 120  # of a library's message within ours


def _is_news(record: Any) -> bool:
    """Whether a line of absl's log is to be seen.

    To Orbax it is a warning that a folder is only looked at; and what its threads raise is logged
    by each that passes it on, before it is raised here.
    """
    of_orbax = "orbax" in record.pathname
    return not (of_orbax and (record.exc_info or "read only" in str(record.msg)))


logging.get_absl_logger().addFilter(_is_news)


class Damaged(UserError):
    """A checkpoint that is not what was saved."""


class Checkpoints:
    """The `checkpoints/` folder of a workdir, by step.

    A checkpoint has three parts: `variables`, the averaged ones where there is an average, for
    inference; `training`, what else the next step depends on; and `record`, the digests of all
    arrays. Saving goes on in the background; a checkpoint gets its name only once it is whole.
    What is measured afterwards is added as `metrics.json`.

    Args:
      workdir: of the run.
      keep_every_steps: checkpoints of these steps are never deleted; 0: none.
      writing: False to look at a run that may be going on: nothing in the folder is changed.
    """

    def __init__(self, workdir: Path, keep_every_steps: int = 0, writing: bool = True):
        self.folder = workdir.absolute() / CHECKPOINTS
        self._writing = writing
        self._ratings = Ratings(self.folder)
        kept: list[Any] = [checkpoint_managers.LatestN(NEWEST), _Best(self._ratings)]
        if keep_every_steps:
            kept.append(checkpoint_managers.EveryNSteps(keep_every_steps))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=writing,  # what a crash left half-written
            create=False,
            read_only=not writing,
            save_interval_steps=1 if writing else 0,  # what Orbax itself would set, with a warning
        )
        with self._told("cannot be opened"):
            if writing:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None before the first."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest AP, None where none was evaluated."""
        return self._ratings.best(self._manager.all_steps())

    def metrics(self, step: int) -> dict[str, Any] | None:
        """What `rate` noted of a step; None if nothing was, or if that is damaged."""
        return self._ratings.of(step)

    def save(self, state: TrainState) -> None:
        """Begin to save; a step that is saved already is left as it is.

        Raises:
          UserError: if this checkpoint, or the one before it, could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # Copies: the next step is going to overwrite the donated buffers.
        parts = _split(jax.tree.map(lambda leaf: np.array(leaf), state))
        record = {"version": VERSION, "arrays": digests.of_arrays(parts)}
        items = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
        self._ratings.begin(step)
        with self._told(f"checkpoint {step} cannot be written"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **items, **{RECORD: ocp.args.JsonSave(digests.signed(record))}
                ),
            )

    def rate(self, step: int, metrics: dict[str, Any]) -> None:
        """Note what was measured of a step that was saved, once that is on disk.

        Raises:
          UserError: if the one or the other cannot be written.
        """
        self.wait()
        self._ratings.note(step, metrics, writing=hosts.is_writer())

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`; `like` has its structure, shapes and dtypes.

        Raises:
          Damaged: if it is not what was saved.
          UserError: if it is the state of another model or optimizer.
        """
        restored = self._restore(step, _split(like))
        kept, training = restored["variables"], restored["training"]
        averaged = like.average is not None
        return TrainState(
            step=training["step"],
            **(training["variables"] if averaged else kept),
            average=kept if averaged else None,
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
        steps = set(self._manager.all_steps())
        named = bool(steps)
        while steps:
            step = self._ratings.best(steps)
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
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait as `wait` does, and let go of everything."""
        with self._told("the last checkpoint cannot be written"):
            self._manager.close()

    def _record(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(**{RECORD: ocp.args.JsonRestore()})
        try:
            record = digests.verified(self._manager.restore(step, args=args)[RECORD])
        except Exception as error:  # whatever a damaged file provokes
            reason = f"its {RECORD} cannot be read: {_line(error)}"
            raise Damaged(f"{self.folder}/{step}: is damaged ({reason})") from error
        if record["version"] != VERSION:
            raise UserError(
                f"{self.folder}/{step}: has version {record['version']} of the format, this "
                f"program reads {VERSION}; use the nanodet_jax that wrote it"
            )
        return record

    def _restore(self, step: int, parts: dict[str, Any]) -> Any:
        where = f"{self.folder}/{step}"
        saved = {
            name: about
            for name, about in self._record(step)["arrays"].items()
            if name.partition("/")[0] in parts
        }
        difference = digests.difference_in_shape(saved, parts)
        if difference:
            raise UserError(
                f"{where}: does not fit this config's model or optimizer ({difference}); use the "
                "workdir's own config, or another workdir"
            )
        args = {name: ocp.args.StandardRestore(_host(part)) for name, part in parts.items()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
            restored = {name: restored[name] for name in parts}
            difference = digests.difference(saved, restored)
        except Exception as error:  # whatever a damaged file provokes
            raise Damaged(f"{where}: is damaged ({_line(error)})") from error
        if difference:
            raise Damaged(f"{where}: is damaged ({difference})")
        return restored

    def _set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that the step can be saved again."""
        place = self.folder / f"damaged_{step}"
        number = 1
        while place.exists():
            number += 1
            place = self.folder / f"damaged_{step}_{number}"
        with self._told(f"checkpoint {step} is damaged and cannot be moved aside"):
            if hosts.is_writer():
                (self.folder / str(step)).rename(place)
            hosts.gather(None)  # all have seen the damage, and now see it gone
            self._manager.reload()
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

    def __init__(self, ratings: Ratings):
        self._ratings = ratings

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = self._ratings.best(info.step for info in checkpoints)
        return [info.step == best for info in checkpoints]


def _split(state: TrainState) -> dict[str, Any]:
    training = {"opt_state": state.opt_state, "step": state.step}
    if state.average is not None:
        training["variables"] = state.variables
    return {"variables": state.inference_variables, "training": training}


def _host(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


def _line(error: BaseException) -> str:
    line = first_line(error)
    # TensorStore begins with what it was about to do, and ends with what the system said to that.
    return line if len(line) <= LONGEST_LINE else f"... {line[-LONGEST_LINE:]}"


def saved_steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if p.name.isascii() and p.name.isdecimal()]
