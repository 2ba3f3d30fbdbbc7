"""One run at a time in a workdir."""

from pathlib import Path

from filelock import FileLock, Timeout

from nanodet_jax.errors import UserError


def lock(workdir: Path) -> FileLock:
    """A held lock on a folder, which is made if need be; a context that lets go of it at its end.

    The system lets go of it when the process ends, however it does. The file `lock` stays.

    Raises:
      UserError: if another run holds it, or the folder cannot be written to.
    """
    held = FileLock(workdir / "lock")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{workdir}: another run is going on there; wait for it, or give another --workdir"
        ) from error
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written to: {error.strerror}") from error
    return held
