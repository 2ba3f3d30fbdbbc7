"""Clocks and memory: how long what is measured takes, and what it needs."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nanodet_jax.runtime import backend

Row = dict[str, float]  # what was measured, by the keys of `report.COLUMNS` and more


class Effort(NamedTuple):
    """How often to repeat: until `seconds` are over, but within the two bounds."""

    seconds: float = 5.0
    least: int = 5
    most: int = 50


class Times(NamedTuple):
    """Of one run."""

    wall: float  # seconds
    cpu: float  # seconds, of all threads of the process


class Program(NamedTuple):
    """Something to be timed, which has run once."""

    run: Callable[[], Any]  # returns arrays to wait for
    facts: Row  # what is known of it already
    images: int = 0  # that go through it in a run; 0: its time is not counted in images
    batches: int = 1  # that they are split into; times are told of one
    limit: str = ""  # `machine.TRAFFIC` that bounds it: training | inference; "": no bound


def clocked(run: Callable[[], Any]) -> Callable[[], Times]:
    """A run that waits for its result and tells its times."""

    def timed() -> Times:
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        return Times(time.perf_counter() - wall, time.process_time() - cpu)

    return timed


def alternate(runs: Mapping[str, Callable[[], Times]], effort: Effort) -> dict[str, list[Times]]:
    """Times of each, taken in turn, so that other work on the machine slows all of them alike."""
    times: dict[str, list[Times]] = {name: [] for name in runs}
    end = time.perf_counter() + effort.seconds * len(runs)
    for done in range(effort.most if runs else 0):
        if done >= effort.least and time.perf_counter() > end:
            break
        for name, run in runs.items():
            times[name].append(run())
    return times


def summarize(times: list[Times]) -> Row:
    """Milliseconds: medians, and the least, which other work disturbs least."""
    walls, cpus = zip(*times)
    return {
        "wall_ms": 1e3 * statistics.median(walls),
        "wall_min_ms": 1e3 * min(walls),
        "cpu_ms": 1e3 * statistics.median(cpus),
    }


def compile_and_run(
    jitted: Any, *args: Any, following: Callable[[Any], tuple] | None = None, **about: Any
) -> Program:
    """A program of fixed arguments, compiled or loaded from the cache, and run once.

    Args:
      jitted: of `backend.jit`.
      *args: of the first run, and of all others unless `following` is given.
      following: arguments of the next run from a result, where a run uses its own up.
      **about: `images` and `limit` of the program.

    Returns:
      The program; its facts are `first_s`, seconds from tracing to the first result, and
      `plan_mb`, the memory that the compiler plans for: arguments, results, and what lives only
      within the program.
    """
    started = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    held = args

    def run() -> Any:
        nonlocal held
        result = compiled(*held)
        if following is not None:
            held = following(result)
        return result

    jax.block_until_ready(run())
    backend.defragment_heap()  # as the training loop does
    facts = {"first_s": time.perf_counter() - started, "plan_mb": planned_mb(compiled)}
    return Program(run, facts, **about)


def planned_mb(compiled: Any) -> float:
    """Megabytes that the compiler plans for: arguments, results and temporaries of a program."""
    plan = compiled.memory_analysis()
    new = plan.temp_size_in_bytes + plan.output_size_in_bytes
    return (new + plan.argument_size_in_bytes - plan.alias_size_in_bytes) / 1e6


def resident_mb(process: int | str = "self") -> Row:
    """The most memory of the host that a process has held so far, MB, where the system tells.

    Linux counts from the start of the process's program. What `getrusage` says includes what the
    parent held when it started the process.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # not Linux
        return {}
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    if "VmHWM" not in fields:  # the process has ended
        return {}
    return {"resident_mb": 1024 * float(fields["VmHWM"].split()[0]) / 1e6}


def peaks() -> Row:
    """The most memory that this process has held so far, MB: of the host, and of the device."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return resident_mb()
    return resident_mb() | {"device_mb": stats["peak_bytes_in_use"] / 1e6}


def row_of(program: Program, times: list[Times], seconds_at_limit: float | None) -> Row:
    """Times of a batch, images per second, and the share of what the device could do.

    Args:
      program: what ran.
      times: of its runs, each of `program.batches` batches.
      seconds_at_limit: of an image if nothing but the device's limits held it up, if known.
    """
    row = {key: value / program.batches for key, value in summarize(times).items()}
    if program.images:
        second = 1e3 * program.images / program.batches
        row["images_per_second"] = second / row["wall_ms"]
        if seconds_at_limit is not None:
            row["of_limit"] = row["images_per_second"] * seconds_at_limit
    return row | program.facts
