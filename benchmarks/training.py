"""`train.py` as users run it: the time to its first step, its speed, and how long it waits."""

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

from benchmarks.processes import CACHE, cached_files
from benchmarks.timing import Effort, Row, resident_mb
from nanodet_jax.errors import UserError

ROOT = Path(__file__).parents[1]
POLL = 0.05  # seconds


class Logged(NamedTuple):
    """A line of training in `metrics.jsonl`, when it appeared."""

    seconds: float  # since the start of the process
    values: dict[str, Any]
    memory: Row  # of `timing.resident_mb`, at that time


def follow(flags: list[str], cache: Path) -> Generator[Logged]:
    """Run `train.py`, in a workdir that is thrown away, for as long as lines are asked for.

    Then it is ended as `kill` would, which saves and does not evaluate.

    Raises:
      UserError: with the run's last words if it ends by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir, said = Path(folder, "run"), Path(folder, "said.txt")
        started = time.perf_counter()
        with said.open("w") as output:
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
                        yield Logged(seconds, line, resident_mb(process.pid))
                time.sleep(POLL)
            words = said.read_text().strip().splitlines()
            raise UserError(f"train.py: {words[-1] if words else 'ended without a word'}")
        finally:
            process.terminate()
            process.wait()


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")  # the last line may be half written
    return [json.loads(line) for line in whole.splitlines()]


def first_step(flags: list[str], cache: Path) -> Row:
    """`start_s`: seconds from the command to the end of its first step."""
    with closing(follow([*flags, "--config.training.log_every=1"], cache)) as lines:
        line = next(lines)
    return {"start_s": line.seconds} | line.memory


def start_up(flags: list[str]) -> dict[str, Row]:
    """`first_step` with a cache that is empty, and with what the first time left in it."""
    with tempfile.TemporaryDirectory() as cache:
        return {name: first_step(flags, Path(cache)) for name in ("compiled", "from the cache")}


def end_to_end(flags: list[str], cache: Path, effort: Effort) -> dict[str, Row]:
    """Images per second of the training loop, and the share of its time spent waiting for data.

    Medians over the lines of the log after the first, which has the program's loading in it.

    Args:
      flags: of `train.py`; among them how many steps a line is about.
      cache: folder of compiled programs; if the step is not there, it is compiled in a run before.
      effort: its seconds after the first line, and at least three lines.
    """
    for attempt in range(2):
        before = cached_files(cache)
        measured: list[Logged] = []
        with closing(follow(flags, cache)) as lines:
            began = next(lines)
            if attempt == 0 and cached_files(cache) > before:
                continue
            for line in lines:
                measured.append(line)
                if len(measured) >= 3 and line.seconds - began.seconds > effort.seconds:
                    break
        break
    row = {
        key: statistics.median(line.values[key] for line in measured)
        for key in ("images_per_second", "waiting")
    }
    return {"": row | {"start_s": began.seconds} | measured[-1].memory}
