"""UserError, for errors that the user can fix, and helpers for error messages."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Error that the user can fix. The message names the file, field or key, and often the fix.

    The command line prints the message on one line and exits with code 2. Any other exception is a
    bug in the program, and its traceback is shown.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return " did you mean NAME?" with the known name closest to `given`; "" if none is close."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" did you mean {close[0]}?" if close else ""


@contextmanager
def reporting_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk, into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written to: {error.strerror or error}") from error
