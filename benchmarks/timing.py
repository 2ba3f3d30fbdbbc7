"""Time and memory of programs."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nanodet_jax.runtime import backend

Row = dict[str, float]  # measurements, by the keys of `report.COLUMNS` and other keys


class Repeats(NamedTuple):
    """How often to run a program: for `seconds`, but between `min_runs` and `max_runs` times."""

    seconds: float = 5.0
    min_runs: int = 5
    max_runs: int = 50


class Times(NamedTuple):
    """Times of one run."""

    wall: float  # seconds
    cpu: float  # seconds, of all threads of the process


class Program(NamedTuple):
    """A program to measure, which has run once."""

    run: Callable[[], Any]  # returns arrays to wait for
    facts: Row  # measurements made while it was built
    images: int = 0  # images per run; 0: do not report images per second
    batches: int = 1  # batches per run; times are reported for one batch
    roofline: str = ""  # the key of `machine.TRAFFIC` for its bound: training | inference | ""


def timed(run: Callable[[], Any]) -> Callable[[], Times]:
    """Return a function that calls `run`, waits for the result and returns the times."""

    def run_timed() -> Times:
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        return Times(time.perf_counter() - wall, time.process_time() - cpu)

    return run_timed


def alternate(runs: Mapping[str, Callable[[], Times]], repeats: Repeats) -> dict[str, list[Times]]:
    """Time all programs alternately, so that other work on the machine slows them all equally."""
    times: dict[str, list[Times]] = {name: [] for name in runs}
    end = time.perf_counter() + repeats.seconds * len(runs)
    for done in range(repeats.max_runs if runs else 0):
        if done >= repeats.min_runs and time.perf_counter() > end:
            break
        for name, run in runs.items():
            times[name].append(run())
    return times


def summarize(times: list[Times]) -> Row:
    """Return milliseconds: medians, and the minimum, which other work affects least."""
    walls, cpus = zip(*times)
    return {
        "wall_ms": 1e3 * statistics.median(walls),
        "wall_min_ms": 1e3 * min(walls),
        "cpu_ms": 1e3 * statistics.median(cpus),
    }


def compile_and_run(
    jitted: Any, *args: Any, next_args: Callable[[Any], tuple] | None = None, **fields: Any
) -> Program:
    """Compile a function for these arguments, or load it from the cache, and run it once.

    Args:
      jitted: from `backend.jit`.
      *args: arguments of the first run, and of all further runs unless `next_args` is given.
      next_args: computes the arguments of the next run from a result, if a run donates its
        arguments.
      **fields: `images` and `roofline` of the program.

    Returns:
      The program. Its facts are `first_s`, the seconds from tracing to the first result, and
      `plan_mb`, the memory that the compiler plans for arguments, results and temporaries.
    """
    started = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    current = args

    def run() -> Any:
        nonlocal current
        result = compiled(*current)
        if next_args is not None:
            current = next_args(result)
        return result

    jax.block_until_ready(run())
    backend.defragment_heap()  # as the training loop does
    facts = {"first_s": time.perf_counter() - started, "plan_mb": planned_mb(compiled)}
    return Program(run, facts, **fields)


def planned_mb(compiled: Any) -> float:
    """Return the megabytes that the compiler plans for arguments, results and temporaries."""
    plan = compiled.memory_analysis()
    new = plan.temp_size_in_bytes + plan.output_size_in_bytes
    return (new + plan.argument_size_in_bytes - plan.alias_size_in_bytes) / 1e6


def peak_resident_mb(process: int | str = "self") -> Row:
    """Return the peak resident memory of a process so far, in MB; an empty row if it is unknown.

    Linux measures this peak from the moment when the process starts its program. `getrusage` would
    include the memory that the parent had when it started the process.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # not Linux
        return {}
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    if "VmHWM" not in fields:  # the process has ended
        return {}
    return {"resident_mb": 1024 * float(fields["VmHWM"].split()[0]) / 1e6}


def peak_memory() -> Row:
    """Return the peak memory of this process so far, in MB, on the host and on the device."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return peak_resident_mb()
    return peak_resident_mb() | {"device_mb": stats["peak_bytes_in_use"] / 1e6}


def make_row(program: Program, times: list[Times], roofline_seconds: float | None) -> Row:
    """Return times per batch, images per second, and the fraction of the roofline limit.

    Args:
      program: the program that was timed.
      times: the times of its runs, each of `program.batches` batches.
      roofline_seconds: shortest possible time per image on the device, if known.
    """
    row = {key: value / program.batches for key, value in summarize(times).items()}
    if program.images:
        batch = program.images / program.batches
        row["images_per_second"] = 1e3 * batch / row["wall_ms"]
        if roofline_seconds is not None:
            row["of_limit"] = row["images_per_second"] * roofline_seconds
    return row | program.facts
