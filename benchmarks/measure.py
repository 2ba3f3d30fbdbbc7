"""Measure rows of the table: build programs, and time them alternately with the original."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from benchmarks.machine import roofline_seconds
from benchmarks.processes import CacheMiss, count_cached_files
from benchmarks.reference import Original, Reference
from benchmarks.timing import (
    Program,
    Repeats,
    Row,
    alternate,
    make_row,
    peak_memory,
    summarize,
    timed,
)
from benchmarks.workload import Workload

ORIGINAL = "original"
Build = Callable[[Workload], dict[str, Program]]


class Job(NamedTuple):
    """Programs to build, and how to time them."""

    build: Build
    workload: Workload
    repeats: Repeats
    reference: Reference | None = None  # the original, to run alternately
    mode: str = ""  # mode of `original_worker.py`: step | network; "": no counterpart


def measure(job: Job, require_cached: bool) -> dict[str, Row]:
    """Return the rows of the job's programs by name; call it in a new process.

    Raises:
      CacheMiss: if `require_cached` and a program was not in the cache.
    """
    before = count_cached_files()
    programs = job.build(job.workload)
    if require_cached and count_cached_files() > before:
        raise CacheMiss
    runs = {name: timed(program.run) for name, program in programs.items()}
    if job.reference is None or not job.mode:
        times, of_original = alternate(runs, job.repeats), {}
    else:
        with Original(job.reference, job.mode, job.workload) as original:
            times = alternate(runs | {ORIGINAL: original.run}, job.repeats)
        of_original = summarize(times[ORIGINAL]) | original.memory
    config, device = job.workload.load(), jax.devices()[0].device_kind
    rows = {}
    for name, program in programs.items():
        bound = roofline_seconds(config, job.workload.precision, program.roofline, device)
        rows[name] = row = make_row(program, times[name], bound) | peak_memory()
        row |= {f"original_{key}": value for key, value in of_original.items()}
        if of_original:
            row["speedup"] = of_original["wall_ms"] / row["wall_ms"]
            row["speedup_of_min"] = of_original["wall_min_ms"] / row["wall_min_ms"]
    return rows
