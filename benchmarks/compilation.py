"""Until the first step is done: compiled into an empty cache, and loaded from it."""

import shutil
import tempfile
import time
from pathlib import Path

from benchmarks import step
from benchmarks.processes import fresh
from benchmarks.subject import Subject
from benchmarks.timing import Row, peaks


def first_step(subject: Subject, started: float) -> Row:
    """To be called in a process of its own.

    Args:
      subject: of `step.training_step`.
      started: `time.time()` when the process was asked for.

    Returns:
      `start_s` seconds from then to the end of the first step: imports, first variables, the step;
      `first_s` of which from tracing on, and the step's planned memory.
    """
    program = step.training_step(subject)[""]
    return program.facts | {"start_s": time.time() - started} | peaks()


def cold_and_warm(subject: Subject, cache: Path) -> dict[str, Row]:
    """A row for either. What was compiled is added to `cache`, for the rows to come."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder)
        rows = {
            name: fresh(first_step, subject, time.time(), cache=empty)
            for name in ("compiled", "from the cache")
        }
        shutil.copytree(empty, cache, dirs_exist_ok=True)
    return rows
