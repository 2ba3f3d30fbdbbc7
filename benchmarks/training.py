"""`train.py` as a subprocess: time to its first step, speed, and time spent waiting for data."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.processes import CACHE, count_cached_files
from benchmarks.timing import Repeats, Row, peak_resident_mb
from nanodet_jax.errors import UserError

ROOT = Path(__file__).parents[1]
POLL_S = 0.05  # seconds between two reads of the log


class LogLine(NamedTuple):
    """A training line of `metrics.jsonl`, with the time when it appeared."""

    seconds: float  # since the start of the process
    values: dict[str, Any]
    memory: Row  # from `timing.peak_resident_mb` at that time


def follow(flags: list[str], cache: Path) -> Generator[LogLine]:
    """Run `train.py` in a temporary workdir, and yield its training lines.

    Closing the generator stops the run with SIGTERM: it saves but does not evaluate.

    Raises:
      UserError: with the last line of the run's output, if the run ends by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir, log = Path(folder, "run"), Path(folder, "log.txt")
        started = time.perf_counter()
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "train.py", f"--workdir={workdir}", *flags],
                cwd=ROOT, stdout=output, stderr=output,
                env={**os.environ, CACHE: str(cache), "JAX_TRACEBACK_FILTERING": "off"},
            )  # fmt: skip
        seen = 0
        try:
            while process.poll() is None:
                for line in _lines(workdir / "metrics.jsonl")[seen:]:
                    seen += 1
                    if line["kind"] == "train":
                        seconds = time.perf_counter() - started
                        yield LogLine(seconds, line, peak_resident_mb(process.pid))
                time.sleep(POLL_S)
            lines = log.read_text().strip().splitlines()
            raise UserError(f"train.py: {lines[-1] if lines else 'ended without any output'}")
        finally:
            process.terminate()
            process.wait()


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")  # the last line may be incomplete
    return [json.loads(line) for line in whole.splitlines()]


def first_step(flags: list[str], cache: Path) -> Row:
    """Return `start_s`: seconds from the start of the command to the end of its first step."""
    with closing(follow([*flags, "--config.training.log_every=1"], cache)) as lines:
        line = next(lines)
    return {"start_s": line.seconds} | line.memory


def start_up(flags: list[str]) -> dict[str, Row]:
    """Return `first_step` with an empty compilation cache, and with a filled one."""
    with tempfile.TemporaryDirectory() as cache:
        return {name: first_step(flags, Path(cache)) for name in ("compiled", "from the cache")}


def end_to_end(flags: list[str], cache: Path, repeats: Repeats) -> dict[str, Row]:
    """Return images per second, and the fraction of time that training waits for data.

    The values are medians over the log lines after the first one, which includes compilation.

    Args:
      flags: of `train.py`; `log_every` sets the number of steps per line.
      cache: folder of compiled programs; if the step is missing, a separate run compiles it first.
      repeats: only `seconds` is used, the time to measure after the first line. At least three
        lines are measured.
    """
    for attempt in range(2):
        before = count_cached_files(cache)
        measured: list[LogLine] = []
        with closing(follow(flags, cache)) as lines:
            first = next(lines)
            if attempt == 0 and count_cached_files(cache) > before:
                continue
            for line in lines:
                measured.append(line)
                if len(measured) >= 3 and line.seconds - first.seconds > repeats.seconds:
                    break
        break
    row = {
        key: statistics.median(line.values[key] for line in measured)
        for key in ("images_per_second", "waiting")
    }
    return {"": row | {"start_s": first.seconds} | measured[-1].memory}
