"""A row of the table: a program built and timed in a process of its own, beside the original."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from benchmarks.machine import seconds_at_limit
from benchmarks.processes import Compiled, cached_files
from benchmarks.reference import Original, Reference
from benchmarks.subject import Subject
from benchmarks.timing import Effort, Program, Row, alternate, clocked, peaks, row_of, summarize

ORIGINAL = "original"
Build = Callable[[Subject], dict[str, Program]]


class Job(NamedTuple):
    """What to build, and how to time it."""

    build: Build
    subject: Subject
    effort: Effort
    reference: Reference | None = None  # runs along where it is given
    what: str = ""  # of the original: step | network


def measure(job: Job, insist: bool) -> dict[str, Row]:
    """Rows of the job's programs, by their names; to be called in a process of its own.

    Raises:
      Compiled: if `insist` and a program was not in the cache.
    """
    before = cached_files()
    programs = job.build(job.subject)
    if insist and cached_files() > before:
        raise Compiled
    runs = {name: clocked(program.run) for name, program in programs.items()}
    if job.reference is None or not job.what:
        times, theirs = alternate(runs, job.effort), {}
    else:
        with Original(job.reference, job.what, job.subject) as original:
            times = alternate(runs | {ORIGINAL: original.run}, job.effort)
        theirs = summarize(times[ORIGINAL]) | original.memory
    config, device = job.subject.load(), jax.devices()[0].device_kind
    rows = {}
    for name, program in programs.items():
        bound = seconds_at_limit(config, job.subject.precision, program.limit, device)
        rows[name] = row = row_of(program, times[name], bound) | peaks()
        row |= {f"original_{key}": value for key, value in theirs.items()}
        if theirs:
            row["speedup"] = theirs["wall_ms"] / row["wall_ms"]
            row["speedup_of_min"] = theirs["wall_min_ms"] / row["wall_min_ms"]
    return rows
