"""The one error a user is meant to read, and what becomes of others in its message."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Input that cannot be used: the message names the file, field or key, and the fix.

    The entry points (`train.py`, `eval.py`, `nanodet-jax`) print the message on one line and exit
    with code 2. A traceback means a fault of the program.
    """


def first_line(error: BaseException) -> str:
    """Of a message of many lines, as libraries write, what fits into ours; its type if empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a UserError that names `path`, where the disk is full or may not be written to."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
