"""Inference on one image, compared with other engines, on one core and on all cores.

The engines are PyTorch (eager), ONNX Runtime and ncnn. They run the original's network in float32,
alternately with this project's network. They need a checkout of the original, and a Python with
`torch onnx onnxruntime ncnn pnnx`.
"""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.inference import network
from benchmarks.processes import run_in_new_process
from benchmarks.reference import Original, Reference
from benchmarks.timing import Repeats, Row, alternate, summarize, timed
from benchmarks.workload import Workload
from nanodet_jax.errors import UserError

ENGINES = {"PyTorch, eager": "network", "ONNX Runtime": "onnxruntime", "ncnn": "ncnn"}


def compare(
    workload: Workload, reference: Reference, cores: list[int], repeats: Repeats
) -> list[Row]:
    """Return the times of this project, then of each of ENGINES, on these cores.

    Call it in a new process: it restricts the process to `cores`.
    """
    os.sched_setaffinity(0, cores)  # before XLA counts the cores; child processes inherit this
    ours = network(workload)[""]
    with ExitStack() as stack:
        runs = {"": timed(ours.run)}
        for name, mode in ENGINES.items():
            runs[name] = stack.enter_context(Original(reference, mode, workload)).run
        times = alternate(runs, repeats)
    return [summarize(times[name]) for name in runs]


def benchmark(
    configs: tuple[str, ...], reference: Reference, repeats: Repeats, cache: Path
) -> dict[str, Row]:
    """Measure and print milliseconds per image; return rows by name.

    Raises:
      UserError: if the system cannot restrict processes to some cores, or an engine does not start.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("engines: needs Linux, to restrict processes to some of the cores")
    available = sorted(os.sched_getaffinity(0))
    measured: dict[str, Row] = {}
    print(f"{'one image, float32':55s}{'min':>8s}{'median':>8s}  ms")
    for file in configs:
        workload = replace(Workload(file, "float32"), batch=1)
        for cores in (available[:1], available) if len(available) > 1 else (available,):
            rows = run_in_new_process(compare, workload, reference, cores, repeats, cache=cache)
            for name, row in zip(("here", *ENGINES), rows, strict=True):
                full = f"{workload.label}, {len(cores)} core(s): {name}"
                measured[full] = row
                print(f"{full:55s}{row['wall_min_ms']:8.1f}{row['wall_ms']:8.1f}", flush=True)
    return measured
