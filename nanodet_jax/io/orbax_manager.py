"""The Orbax manager that writes and deletes the checkpoints of a run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from nanodet_jax.io.checkpoint_files import saved_steps

NUM_NEWEST = 2  # newest checkpoints to keep: a second one in case the newest is damaged


def open_manager(
    folder: Path,
    best_of: Callable[[Iterable[int]], int | None],
    keep: Callable[[int], bool],
) -> ocp.CheckpointManager:
    """Open a manager that keeps the newest checkpoints, the best one, and selected others.

    Args:
      folder: folder of the checkpoints; it must exist.
      best_of: returns the best of several steps, or None if none was evaluated.
      keep: returns whether the checkpoint of a step must never be deleted.
    """
    kept: list[Any] = [checkpoint_managers.LatestN(NUM_NEWEST), _Best(best_of), _Keep(keep)]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=True,  # delete incomplete checkpoints after a crash
        create=False,
        step_name_format=_DecimalSteps(),
        lightweight_initialize=True,  # do not read the folders of steps
    )
    return ocp.CheckpointManager(folder, options=options)


class _Best(checkpoint_managers.PreservationPolicy):
    """Keep the best checkpoint."""

    def __init__(self, best_of: Callable[[Iterable[int]], int | None]):
        self._best_of = best_of

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = self._best_of(info.step for info in checkpoints)
        return [info.step == best for info in checkpoints]


class _Keep(checkpoint_managers.PreservationPolicy):
    """Keep the checkpoints of selected steps."""

    def __init__(self, keep: Callable[[int], bool]):
        self._keep = keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [self._keep(info.step) for info in checkpoints]


class _DecimalSteps(ocp.path.step.NameFormat):
    """Step folder names for Orbax, which must accept the same names as `saved_steps`."""

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
