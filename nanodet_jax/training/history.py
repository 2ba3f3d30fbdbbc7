"""Legs of a run. A leg is the part of a run from a start or resumption to the next stop.

`about.json` describes the current leg. `history.jsonl` describes all legs. It gets one line when a
leg has taken its first step, and another when the leg ends.
"""

import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from nanodet_jax.errors import UserError, first_line, reporting_write_errors
from nanodet_jax.files import NO_FOLLOW, open_regular, write_json
from nanodet_jax.io.weights import ABOUT

HISTORY = "history.jsonl"
LINE_LIMIT = 1 << 24  # bytes
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
GIT_TIMEOUT_S = 10


class Leg:
    """The current leg of a run.

    This is a context manager that records the end of the leg. If the process is killed, the next
    leg records the end instead.

    Args:
      workdir: folder of the run.
      files: content of the other json files that describe the run, by name.
      about: content of `about.json`, to which the leg adds its own description.
      start_step: steps done at the start.
      facts: additional entries of the description.
      writing: whether this process writes the files. Only one process of a run does.

    Attributes:
      step: steps done.
    """

    def __init__(
        self,
        workdir: Path,
        files: dict[str, Any],
        about: dict[str, Any],
        start_step: int,
        facts: dict[str, Any],
        writing: bool = True,
    ) -> None:
        self.step = start_step
        self._workdir, self._files, self._about = workdir, files, about
        self._start_step, self._facts = start_step, facts
        self._writing = writing
        self._number = 0  # until the leg begins

    def begin(self) -> None:
        """Write the description of the leg. Call this after its first step.

        `about.json` comes first and is replaced as a whole. If the process is killed before the
        line of `history.jsonl` is written, the next leg writes it.

        Raises:
          UserError: naming the file, if it cannot be written.
        """
        if not self._writing:
            return
        self._number = _complete_history(self._workdir, self._start_step) + 1
        leg = {
            "leg": self._number,
            "started": _now(),
            "command": sys.argv,
            "start_step": self._start_step,
            **self._facts,
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "git_revision": git_revision(),
        }
        write_json(self._workdir / ABOUT, self._about | {"leg": leg}, indent=2)
        for name, content in self._files.items():
            write_json(self._workdir / name, content, indent=2)
        _append(self._workdir, {"event": "start", **leg})

    def __enter__(self) -> "Leg":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._number:
            return
        reason = "finished"
        if isinstance(error, KeyboardInterrupt | SystemExit):
            reason = "stopped"
        elif error is not None:
            reason = f"failed: {first_line(error)}"
        try:
            _append(self._workdir, _end(self._number, self.step, reason, _now()))
        except UserError:
            if error is None:  # otherwise the first error is the one to report
                raise


def read_history(workdir: Path) -> list[dict[str, Any]]:
    """Return the legs of a run in order, each with its start and, if it has ended, its end.

    The keys are the same as in `history.jsonl`, without `event`. Damaged lines are left out.

    Raises:
      UserError: if the file cannot be read.
    """
    path = workdir / HISTORY
    legs: dict[int, dict[str, Any]] = {}
    try:
        with open_regular(path) as file:
            while line := file.readline(LINE_LIMIT):
                event = _event(line)
                if event is not None:
                    legs.setdefault(event["leg"], {}).update(event)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}; move this file elsewhere") from error
    for leg in legs.values():
        del leg["event"]
    return [legs[number] for number in sorted(legs)]


def git_revision() -> str | None:
    """Return the commit of the checkout that this package runs from, plus "+" if files changed.

    Return None if the package is not in a checkout, or git is missing.
    """
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", str(package.parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _complete_history(workdir: Path, start_step: int) -> int:
    """Record what killed processes could not: the start and end of earlier legs.

    Returns:
      The number of earlier legs.
    """
    legs = read_history(workdir)
    described = _described_leg(workdir)
    if described is not None and described["leg"] == len(legs) + 1:
        _append(workdir, {"event": "start", **described})
        legs.append(described)
    following = [leg.get("start_step", start_step) for leg in legs[1:]] + [start_step]
    for leg, step in zip(legs, following):
        if "end_step" not in leg:
            _append(workdir, _end(leg["leg"], step, "killed", None))
    return len(legs)


def _described_leg(workdir: Path) -> dict[str, Any] | None:
    try:
        with open_regular(workdir / ABOUT) as file:
            leg = json.loads(file.read(LINE_LIMIT))["leg"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    numbers = [leg.get(name) for name in ("leg", "start_step")] if isinstance(leg, dict) else []
    return leg if numbers and all(type(number) is int for number in numbers) else None


def _end(number: int, step: int, reason: str, ended: str | None) -> dict[str, Any]:
    return {"event": "end", "leg": number, "end_step": step, "ended": ended, "reason": reason}


def _event(line: bytes) -> dict[str, Any] | None:
    """Parse a line; return None if it is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(event, dict) and event.get("event") in ("start", "end")
    return event if valid and type(event.get("leg")) is int else None


def _append(workdir: Path, event: dict[str, Any]) -> None:
    """Append a line to the history in one write. If a crash cut off the last line, end it first."""
    path = workdir / HISTORY
    with reporting_write_errors(path):
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | NO_FOLLOW
        with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
            cut_off = False
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                cut_off = file.read(1) != b"\n"
            file.write(b"\n" * cut_off + json.dumps(event).encode() + b"\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
