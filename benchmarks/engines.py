"""The network on one image, beside engines that deploy the same one, on one core and on all.

The original in eager PyTorch, ONNX Runtime and ncnn, all in float32, in turn with ours. Needs the
original, and a Python with `torch onnx onnxruntime ncnn pnnx`.
"""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.inference import network
from benchmarks.processes import fresh
from benchmarks.reference import Original, Reference
from benchmarks.subject import Subject
from benchmarks.timing import Effort, Row, alternate, clocked, summarize
from nanodet_jax.errors import UserError

ENGINES = {"PyTorch, eager": "network", "ONNX Runtime": "onnxruntime", "ncnn": "ncnn"}


def compare(subject: Subject, reference: Reference, cores: list[int], effort: Effort) -> list[Row]:
    """Times of ours, then of each of ENGINES, on these cores; to be called in a fresh process."""
    os.sched_setaffinity(0, cores)  # before XLA counts them; children inherit it
    ours = network(subject)[""]
    with ExitStack() as stack:
        runs = {"": clocked(ours.run)}
        for name, what in ENGINES.items():
            runs[name] = stack.enter_context(Original(reference, what, subject)).run
        times = alternate(runs, effort)
    return [summarize(times[name]) for name in runs]


def benchmark(
    configs: tuple[str, ...], reference: Reference, effort: Effort, cache: Path
) -> dict[str, Row]:
    """Measure and print, by the name of what was measured: milliseconds for an image.

    Raises:
      UserError: where processes cannot be held to some of the cores, or an engine does not start.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("engines: only Linux lets a process be held to some of the cores")
    available = sorted(os.sched_getaffinity(0))
    measured: dict[str, Row] = {}
    print(f"{'one image, float32':55s}{'least':>8s}{'median':>8s}  ms")
    for file in configs:
        subject = replace(Subject(file, "float32"), batch=1)
        for cores in (available[:1], available) if len(available) > 1 else (available,):
            rows = fresh(compare, subject, reference, cores, effort, cache=cache)
            for name, row in zip(("here", *ENGINES), rows, strict=True):
                full = f"{subject.label}, {len(cores)} cores: {name}"
                measured[full] = row
                print(f"{full:55s}{row['wall_min_ms']:8.1f}{row['wall_ms']:8.1f}", flush=True)
    return measured
