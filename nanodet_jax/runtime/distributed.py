"""The processes of a run, one per machine or per device: joining, agreeing, gathering.

A process that runs alone is the rule; all of this is then as good as nothing.
"""

import functools
import os
import pickle
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nanodet_jax import terminal
from nanodet_jax.config import Training
from nanodet_jax.errors import UserError, first_line

AUTO = "auto"
START_S = 300  # within which all have to have started
# After so long without a sign of life a process counts as lost, and all others end. It also bounds
# how long one that is done waits for the rest.
LOST_S = 30
AHEAD = 2  # steps that a vote takes to be counted: by then its devices have it without waiting
# In what jax raises where a collective, or the service that all are registered with, breaks off.
BROKEN_OFF = re.compile("Gloo|NCCL|CoordinationService|coordination service|unhealthy")


def join(training: Training) -> None:
    """Become one of the processes that `config.training.coordinator` and its neighbours tell of.

    To be called before anything that starts jax's backend. Joining twice is harmless.

    Raises:
      UserError: if the others cannot be found.
    """
    if not training.coordinator or jax.distributed.is_initialized():
        return
    # Its handler for SIGTERM would replace the one that lets a process be stopped before it trains.
    jax.config.update("jax_enable_preemption_service", False)
    given: dict[str, Any] = {}
    if training.coordinator != AUTO:
        given = {
            "coordinator_address": training.coordinator,
            "num_processes": training.processes,
            "process_id": training.process,
            "cluster_detection_method": "deactivate",
        }
    # To be said before: where some do not come, jax ends the process with a message of its own.
    terminal.say(f"waiting for the other processes of this run, at most {START_S} s")
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=START_S,
            heartbeat_timeout_seconds=LOST_S,
            shutdown_timeout_seconds=LOST_S,
        )
    except (ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(
            f"config.training.coordinator={training.coordinator!r}: the processes of this run do "
            f"not find each other ({reason}); give HOST:PORT of process 0, with processes and "
            f"process, or {AUTO!r} under Slurm, Open MPI, Kubernetes or on a TPU pod"
        ) from error


def share() -> tuple[int, int]:
    """Index of this process, and how many there are."""
    return jax.process_index(), jax.process_count()


def is_writer() -> bool:
    """Whether this process is the one that writes what all have computed."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Print a line, once for all processes."""
    if is_writer():
        terminal.say(line)


def gather(value: Any) -> list[Any]:
    """What each process gives, in their order; anything that can be pickled, of any size.

    All have to call it. As bytes over the devices' own links it needs neither a folder that all
    see nor shapes that are the same everywhere.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    # A power of two, so that evaluations of one data set seldom compile another program.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def must_agree(facts: dict[str, Any]) -> None:
    """Refuse to go on where processes differ; all have to call it.

    Raises:
      UserError: in every process, naming the first fact that one does not share with process 0.
    """
    everyone = gather(facts)
    for name in facts:
        for process, others in enumerate(everyone):
            if others[name] != everyone[0][name]:
                raise UserError(
                    f"process {process} has another {name} than process 0 "
                    f"({others[name]!r}, not {everyone[0][name]!r}); start all with the same "
                    "command but for config.training.process, and on the same files"
                )


@functools.cache
def _counting() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    mesh = jax.make_mesh(
        (jax.device_count(),), ("votes",), axis_types=(AxisType.Auto,), devices=jax.devices()
    )
    count = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return NamedSharding(mesh, PartitionSpec("votes")), count


def _begin_to_count(vote: bool) -> jax.Array:
    places, count = _counting()
    here = np.full(jax.local_device_count(), vote, np.int32)
    return count(jax.make_array_from_process_local_data(places, here))


def any_of(vote: bool) -> bool:
    """Whether any process says yes: the same answer in all, which have to call it."""
    return vote if jax.process_count() == 1 else int(_begin_to_count(vote)) > 0


class Ballot:
    """`any_of` for a loop that is not to wait: the answer is to what was asked AHEAD calls ago.

    A single process has its own answer at once.
    """

    def __init__(self) -> None:
        self._cast: deque[jax.Array] = deque()

    def any_of(self, vote: bool) -> bool:
        """Whether any process said yes; all have to call it, as often."""
        if jax.process_count() == 1:
            return vote
        self._cast.append(_begin_to_count(vote))
        return len(self._cast) > AHEAD and int(self._cast.popleft()) > 0


def ends_with_the_others(function: Callable) -> Callable:
    """Wrap what several processes run: an error in one ends that process at once.

    Python would first wait at its end for all others, which wait for this one in a collective.
    Once its connections are closed they fail in turn, and say that a process was lost; where
    they cannot tell, they end after LOST_S seconds. What all raise together passes.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not jax.distributed.is_initialized() or jax.process_count() == 1:
                raise
            where = f"process {jax.process_index()}"
            if BROKEN_OFF.search(str(error)):
                reason = first_line(error)
                line = (
                    f"a process of this run ended or cannot be reached ({reason}); its own "
                    "messages say why; the same commands, for all, go on from the newest checkpoint"
                )
            elif isinstance(error, UserError):
                line = str(error)
            else:
                traceback.print_exc()
                line = "the traceback above"
            terminal.say(f"error: {where}: {' '.join(line.split())}", sys.stderr)
            sys.stdout.flush()
            os._exit(2)

    return wrapped
