"""Joining the processes of a run, exchanging values between them, and failing together.

A run has one process per machine or per device. With a single process, most of this does nothing.
"""

import functools
import inspect
import os
import pickle
import re
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nanodet_jax import terminal
from nanodet_jax.config import Distributed
from nanodet_jax.errors import UserError, first_line

P = ParamSpec("P")
T = TypeVar("T")

AUTO = "auto"
START_TIMEOUT_S = 300  # timeout for the start of all processes
# A process that sends no heartbeat for this long counts as lost, and the others exit. A process
# that has finished also waits at most this long for the others.
HEARTBEAT_TIMEOUT_S = 30
# Number of steps before the result of a vote is read. By then the devices have computed it, so
# reading does not wait.
VOTE_DELAY = 2
# Words in JAX's error messages about a failed collective or coordination service.
LOST_CONNECTION = re.compile("Gloo|NCCL|CoordinationService|coordination service|unhealthy")


def join(distributed: Distributed) -> None:
    """Join the processes that `config.distributed` describes.

    Call it before JAX's backend starts. A second call has no effect.

    Raises:
      UserError: if the processes cannot connect to each other.
    """
    if not distributed.coordinator or jax.distributed.is_initialized():
        return
    options: dict[str, Any] = {}
    if distributed.coordinator != AUTO:
        options = {
            "coordinator_address": distributed.coordinator,
            "num_processes": distributed.num_processes,
            "process_id": distributed.process_index,
            "cluster_detection_method": "deactivate",
        }
    # Older versions of JAX lack this option, and use the heartbeat timeout for it.
    if "shutdown_timeout_seconds" in inspect.signature(jax.distributed.initialize).parameters:
        options["shutdown_timeout_seconds"] = HEARTBEAT_TIMEOUT_S
    # Print this first: JAX ends the process with its own message if others do not start.
    terminal.say(f"waiting for the other processes of this run, at most {START_TIMEOUT_S} s")
    try:
        with _keeping_sigterm_handler():
            jax.distributed.initialize(
                **options,
                initialization_timeout=START_TIMEOUT_S,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            )
    except (ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(
            f"config.distributed.coordinator={distributed.coordinator!r}: the processes of this "
            f"run cannot connect to each other ({reason}); use HOST:PORT of process 0, with "
            f"num_processes and process_index, or {AUTO!r} under Slurm, Open MPI, Kubernetes or on "
            "a TPU pod"
        ) from error


@contextmanager
def _keeping_sigterm_handler() -> Iterator[None]:
    """Keep our SIGTERM handler, which also stops a process that has not started to train.

    JAX would replace it with a handler for its preemption service. Newer versions of JAX have an
    option to turn this off. With older versions, our handler is installed again.
    """
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def is_writer() -> bool:
    """Return whether this process writes the files on behalf of all processes."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Print a line in process 0 only."""
    if is_writer():
        terminal.say(line)


def gather(value: T) -> list[T]:
    """Return the values of all processes, by process index.

    Every process must call this function. Values are pickled, and may have any size. The devices
    exchange them as bytes, so neither a shared folder nor equal shapes are needed.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    # Pad to a power of two, so that only a few programs are compiled.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def must_agree(facts: dict[str, Any]) -> None:
    """Check that all processes pass equal values. Every process must call this function.

    Args:
      facts: values by name. The names appear in the error message.

    Raises:
      UserError: in every process, for the first value that differs from process 0's.
    """
    everyone = gather(facts)
    for name in facts:
        for process_index, others in enumerate(everyone):
            if others[name] != everyone[0][name]:
                raise UserError(
                    f"process {process_index} differs from process 0 in {name} "
                    f"({others[name]!r}, not {everyone[0][name]!r}); start all processes with the "
                    "same command, except for config.distributed.process_index, and the same files"
                )


@functools.cache
def _vote_counter() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Return the sharding of votes, one per device, and a function that adds them up."""
    mesh = jax.make_mesh(
        (jax.device_count(),), ("votes",), axis_types=(AxisType.Auto,), devices=jax.devices()
    )
    count = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return NamedSharding(mesh, PartitionSpec("votes")), count


def _start_vote_count(vote: bool) -> jax.Array:
    sharding, count = _vote_counter()
    local = np.full(jax.local_device_count(), vote, np.int32)
    return count(jax.make_array_from_process_local_data(sharding, local))


def any_of(vote: bool) -> bool:
    """Return whether `vote` is True in any process. Every process must call this function."""
    return vote if jax.process_count() == 1 else int(_start_vote_count(vote)) > 0


class DelayedVote:
    """Version of `any_of` that does not wait: it returns the result from VOTE_DELAY calls earlier.

    With a single process it returns that process's vote immediately.
    """

    def __init__(self) -> None:
        self._pending: deque[jax.Array] = deque()

    def any_of(self, vote: bool) -> bool:
        """Cast a vote, and return whether an earlier vote was True in any process.

        Every process must call this method the same number of times.
        """
        if jax.process_count() == 1:
            return vote
        self._pending.append(_start_vote_count(vote))
        return len(self._pending) > VOTE_DELAY and int(self._pending.popleft()) > 0


def fail_together(function: Callable[P, T]) -> Callable[P, T]:
    """Wrap a function that several processes run, so that an error in one ends all of them.

    A process that fails prints the error and exits immediately, without Python's cleanup. The
    cleanup would wait for the other processes, which wait for this one in a collective. Once its
    connections are closed, the others fail too and report a lost process. If they do not notice,
    they exit after HEARTBEAT_TIMEOUT_S seconds. With a single process, errors are raised as usual.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not jax.distributed.is_initialized() or jax.process_count() == 1:
                raise
            if LOST_CONNECTION.search(str(error)):
                reason = (
                    f"a process of this run ended or cannot be reached ({first_line(error)}); see "
                    "its own messages for the cause; start all processes again with the same "
                    "commands to resume from the newest checkpoint"
                )
            elif isinstance(error, UserError):
                reason = str(error)
            else:
                traceback.print_exc()
                reason = "see the traceback above"
            line = f"error: process {jax.process_index()}: {' '.join(reason.split())}"
            terminal.say(line, sys.stderr)
            sys.stdout.flush()
            os._exit(2)

    return wrapper
