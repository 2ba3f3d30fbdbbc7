"""One run at a time in a workdir."""

import time
from pathlib import Path

from filelock import FileLock, Timeout

from nanodet_jax.errors import UserError
from nanodet_jax.runtime import distributed

# How long a start waits for another run in the same workdir to end. A scheduler that replaces a job
# starts the next one while the last one still saves.
WAIT_S = 60.0
POLL_S = 2.0  # so often the other processes of a run hear from the one that waits


def lock(workdir: Path, wait_s: float = 0.0) -> FileLock:
    """Lock a workdir, which is made if need be, until `release` is called.

    The system unlocks it when the process ends, for whatever reason. The file `lock` stays.

    Raises:
      UserError: if another run still holds the lock after `wait_s` seconds, or the folder cannot be
        written to.
    """
    held = FileLock(workdir / "lock")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=wait_s)
    except Timeout as error:
        raise Busy(
            f"{workdir}: another run is going on there; wait for it, or give another --workdir"
        ) from error
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written to: {error.strerror}") from error
    return held


class Busy(UserError):
    """Another run holds the lock."""


def lock_for_all(workdir: Path) -> FileLock | None:
    """Lock a workdir for all processes of this run; all have to call it.

    The writing process waits up to WAIT_S for another run to end, and holds the lock; the others
    get None.

    Raises:
      UserError: as `lock`, in every process.
    """
    deadline = time.monotonic() + WAIT_S
    waiting = False
    while True:
        held, failure = None, None
        if distributed.is_writer():
            left = deadline - time.monotonic()
            try:
                # The first try does not wait, so that a wait is announced before it begins.
                held = lock(workdir, wait_s=max(0.0, min(POLL_S, left)) if waiting else 0.0)
            except UserError as error:
                failure = error
                if isinstance(error, Busy) and left > 0:
                    failure = None
        done, failure = distributed.gather((held is not None, failure))[0]
        if failure is not None:
            raise failure
        if done:
            return held
        if not waiting:
            distributed.say(
                f"{workdir}: another run is going on there; waiting up to {WAIT_S:.0f} s"
            )
        waiting = True
