"""Time to the first training step, with an empty compilation cache and with a filled one."""

import shutil
import tempfile
import time
from pathlib import Path

from benchmarks import step
from benchmarks.processes import run_in_new_process
from benchmarks.timing import Row, peak_memory
from benchmarks.workload import Workload


def first_step(workload: Workload, started: float) -> Row:
    """Measure the first training step; call it in a new process.

    Args:
      workload: for `step.training_step`.
      started: `time.time()` when the process was started.

    Returns:
      `start_s`, the seconds from `started` to the end of the first step (imports, initialization,
      step); `first_s`, the seconds from tracing to the end; and the planned memory of the step.
    """
    program = step.training_step(workload)[""]
    return program.facts | {"start_s": time.time() - started} | peak_memory()


def cold_and_warm(workload: Workload, cache: Path) -> dict[str, Row]:
    """Return rows for an empty and a filled cache. Add the programs to `cache` for later rows."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder)
        rows = {
            name: run_in_new_process(first_step, workload, time.time(), cache=empty)
            for name in ("compiled", "from the cache")
        }
        shutil.copytree(empty, cache, dirs_exist_ok=True)
    return rows
