"""Output to the terminal: escaped, limited in length, and dropped once the terminal is closed."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from tqdm import tqdm

NAME_LIMIT = 200  # characters of a name from a file
LINE_LIMIT = 4000  # characters of a line
# C0 and C1 controls, delete, line separators, bidirectional controls, lone surrogates.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, limit: int = NAME_LIMIT) -> str:
    r"""Escape characters that could control a terminal, and cut long text.

    Control characters, bidirectional controls and lone surrogates become escapes, such as `\x1b`
    and `\u202e`. Text of more than `limit` characters is cut and ends in "...". Other text is
    unchanged.
    """
    if len(text) > limit:
        text = text[:limit] + "..."
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def join_first(items: Sequence[str], limit: int = 5, separator: str = ", ") -> str:
    """Join the first `limit` items and count the rest, as in "a, b and 3 more"."""
    rest = len(items) - limit
    return separator.join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


def say(line: str, stream: TextIO | None = None) -> None:
    """Escape a line with `printable`, and print it above any progress bar, by default to stdout."""
    stream = stream or sys.stdout
    tqdm.write(printable(line, LINE_LIMIT), file=stream)
    stream.flush()


def say_lines(text: str) -> None:
    """Print each line of a text, such as a table, with `say`."""
    for line in text.split("\n"):
        say(line)


def tolerate_closed_output() -> None:
    """Drop output that can no longer be written, instead of raising an error.

    Once the terminal is closed, or the program after a pipe has ended (`| head -1`), a write to
    stdout or stderr raises an OSError, which would end a training run before it saves. Characters
    that the encoding lacks are escaped. Streams that other code has replaced (pytest, a notebook)
    are left unchanged.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        with contextlib.suppress(OSError, ValueError):  # closed before the program started
            stream.flush()
            raw = _Lossy(stream.fileno(), "wb", closefd=False)
            replacement = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering or name == "stderr",
            )
            setattr(sys, name, replacement)


class _Lossy(io.FileIO):
    """A file that ignores write errors."""

    def write(self, data: Any, /) -> int:
        with contextlib.suppress(OSError):
            written = super().write(data)
            if written is not None:  # None if a non-blocking pipe is full
                return written
        return memoryview(data).nbytes
