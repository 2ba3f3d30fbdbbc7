"""Lock of a workdir, which allows only one run at a time."""

import time
from pathlib import Path

from filelock import FileLock, Timeout

from nanodet_jax.errors import UserError
from nanodet_jax.runtime import distributed

# Seconds to wait for another run in the same workdir to end. A scheduler that replaces a job may
# start the new one while the old one is still saving.
WAIT_S = 60.0
POLL_S = 2.0  # seconds between two reports from the waiting process to the other processes


class WorkdirBusy(UserError):
    """Another run holds the lock of the workdir."""


def lock_workdir(workdir: Path, wait_s: float = 0.0) -> FileLock:
    """Lock a workdir until `release` is called; create it if it is missing.

    The operating system releases the lock when the process ends, for whatever reason. The file
    `lock` remains.

    Raises:
      WorkdirBusy: if another run still holds the lock after `wait_s` seconds.
      UserError: if the folder cannot be written to.
    """
    lock = FileLock(workdir / "lock")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise WorkdirBusy(
            f"{workdir}: in use by another run; wait until it ends, or pass a different --workdir"
        ) from error
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written to: {error.strerror}") from error
    return lock


def lock_for_all_processes(workdir: Path) -> FileLock | None:
    """Lock a workdir for all processes of this run. Every process must call this function.

    The writing process waits up to WAIT_S seconds for another run to end, and then holds the lock.
    The other processes get None.

    Raises:
      UserError: as for `lock_workdir`, in every process.
    """
    deadline = time.monotonic() + WAIT_S
    waiting = False
    while True:
        lock, failure = None, None
        if distributed.is_writer():
            left = deadline - time.monotonic()
            try:
                # The first attempt does not wait, so that waiting is announced before it begins.
                lock = lock_workdir(workdir, max(0.0, min(POLL_S, left)) if waiting else 0.0)
            except UserError as error:
                failure = error
                if isinstance(error, WorkdirBusy) and left > 0:
                    failure = None
        done, failure = distributed.gather((lock is not None, failure))[0]
        if failure is not None:
            raise failure
        if done:
            return lock
        if not waiting:
            distributed.say(f"{workdir}: in use by another run; waiting up to {WAIT_S:.0f} s")
        waiting = True
