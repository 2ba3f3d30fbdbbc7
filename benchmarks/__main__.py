"""Benchmark compilation, training, inference, the data loader and memory on this machine.

    python -m benchmarks [--quick] [--only REGEX] [--json FILE] [--reference CHECKOUT]
    python -m benchmarks assignment    # assignment and loss of NanoDet-Plus
    python -m benchmarks evaluation    # COCO's metrics, with each installed evaluator
    python -m benchmarks engines --reference CHECKOUT    # this project, PyTorch, ONNX Runtime, ncnn

Each row is measured in a new process that loads its programs from the compilation cache, and is
printed immediately. The first run compiles the programs. Later runs with the same cache take a
third of the time.
"""

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import jax

from benchmarks import assignment, engines, evaluation, report
from benchmarks.inference import draw_files
from benchmarks.machine import describe_machine
from benchmarks.processes import run_in_new_process
from benchmarks.reference import Reference
from benchmarks.tasks import ON_ACCELERATOR, ON_CPU, Settings, tasks
from benchmarks.timing import Repeats, Row
from nanodet_jax.cli.main import fail
from nanodet_jax.config import Precision
from nanodet_jax.errors import UserError
from nanodet_jax.runtime.process import setup_process

# For `evaluation`: images in COCO's validation set, and the most detections that suppression keeps
# in an image.
NUM_IMAGES, NUM_DETECTIONS = 5000, 100
BENCHMARKS = ("table", "assignment", "evaluation", "engines")
CONFIGS = ("configs/coco.py:nanodet-m_320", "configs/coco.py:nanodet-plus-m_320")
# Variants of which only the network is measured.
NETWORKS = tuple(
    f"configs/coco.py:{variant}"
    for variant in (
        "nanodet-t", "nanodet-g", "nanodet-EfficientNet-Lite0_320",
        "nanodet-EfficientNet-Lite1_416", "nanodet-EfficientNet-Lite2_512",
        "nanodet-RepVGG-A0_416", "picodet-s_320", "gfl-r50_1x", "gfl-r101_2x",
    )
)  # fmt: skip


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    # fmt: off
    add("benchmark", nargs="?", choices=BENCHMARKS, default="table",
        help="what to measure; default: table, which is everything except the other three")
    add("--config", action="append", metavar="FILE[:VARIANT]",
        help=f"may be repeated; default: {' and '.join(CONFIGS)}, plus one row for each other "
        "network unless --quick is set")
    add("--precision", action="append", choices=get_args(Precision),
        help="may be repeated; default: float32, and bf16 on accelerators")
    add("--only", default="", metavar="REGEX",
        help="measure only rows whose names contain a match of this regular expression")
    add("--quick", action="store_true",
        help="measure only the most informative rows, for a second each")
    add("--seconds", type=float, default=3.0, help="time to measure a row; default: 3")
    add("--batch", type=int, metavar="IMAGES",
        help="batch size of a training step; default: 8 on a CPU, 256 on an accelerator, 32 for "
        "assignment")
    add("--reference", type=Path, metavar="CHECKOUT",
        help="compare with the original NanoDet in this folder")
    add("--reference-python", default=sys.executable, metavar="PYTHON",
        help="Python with PyTorch, for --reference; default: the Python that runs this command")
    add("--images", type=Path, metavar="FOLDER",
        help="folder of photographs, for rows that read training data; default: drawn shapes")
    add("--annotations", type=Path, metavar="FILE", help="COCO annotation file of --images")
    add("--cache", type=Path, metavar="FOLDER",
        help="folder of compiled programs; default: the one that train.py uses")
    add("--json", type=Path, metavar="FILE", help="write the results to this file")
    add("--from", type=Path, dest="measured", metavar="FILE",
        help="measure nothing; print the rows of a file written by --json")
    add("--markdown", action="store_true", help="also print a Markdown table")
    add("--size", type=int, default=320, metavar="PIXELS",
        help="side of the input, for assignment; default: 320")
    add("--runs", type=int, default=5,
        help="number of runs to take the median of, for assignment and evaluation; default: 5")
    # fmt: on
    args = parser.parse_args()
    if args.benchmark == "engines" and not args.reference:
        parser.error("engines: needs --reference CHECKOUT")
    if (args.images is None) != (args.annotations is None):
        parser.error("--images and --annotations: pass both, or neither")
    return args


def find_reference(args: argparse.Namespace) -> Reference:
    """Return the original that the flags name; raise UserError if it cannot run."""
    reference = Reference(args.reference.resolve(), args.reference_python)
    reference.check()
    return reference


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Row]]:
    """Measure and print all rows of the table; return the machine and the rows.

    If a task fails, print its error and run the next one.

    Raises:
      UserError: if the value of a flag cannot be used.
    """
    setup_process(args.cache)
    cache = Path(jax.config.jax_compilation_cache_dir).resolve()  # type: ignore[attr-defined]
    # In a separate process: initializing the device here would leave less memory for the tasks.
    machine = run_in_new_process(describe_machine, cache=cache)
    accelerator = machine["platform"] != "cpu"
    scale = ON_ACCELERATOR if accelerator else ON_CPU
    reference = find_reference(args) if args.reference else None
    precisions = ("float32", "bf16") if accelerator else ("float32",)
    columns = report.columns(accelerator, reference is not None)
    print(f"{report.describe(machine)}\n\n{report.LEGEND}\n\n{report.header(columns)}", flush=True)
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        draw_files(Path(folder))
        settings = Settings(
            configs=tuple(args.config or CONFIGS),
            networks=() if args.config or args.quick else NETWORKS,
            precisions=tuple(args.precision or precisions),
            scale=scale._replace(batch=args.batch) if args.batch else scale,
            repeats=Repeats(1.0, min_runs=3) if args.quick else Repeats(args.seconds),
            cache=cache,
            files=Path(folder),
            cpus=machine["cpus"],
            quick=args.quick,
            reference=reference,
            images=args.images and args.images.resolve(),
            annotations=args.annotations and args.annotations.resolve(),
        )
        for task in tasks(settings):
            if not re.search(args.only, task.name):
                continue
            try:
                measured = task.rows()
            except Exception as error:  # for example, out of memory: still measure the other rows
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                print(f"{task.name}: failed: {reason}", flush=True)
                continue
            for name, row in measured.items():
                full = f"{task.name}: {name}" if name else task.name
                rows[full] = row
                print(report.line(full, row, columns), flush=True)
    return machine, rows


def main() -> None:
    args = parse()
    started = time.perf_counter()
    try:
        if args.measured:
            machine, rows = report.read(args.measured)
            rows = {name: row for name, row in rows.items() if re.search(args.only, name)}
            columns = report.columns(True, True)
            print(f"{report.describe(machine)}\n\n{report.LEGEND}\n\n{report.header(columns)}")
            print("\n".join(report.line(name, row, columns) for name, row in rows.items()))
        elif args.benchmark == "table":
            machine, rows = measure(args)
            print(f"\n{len(rows)} rows in {(time.perf_counter() - started) / 60:.1f} minutes")
        else:
            setup_process(args.cache)
            machine = describe_machine()
            if args.benchmark == "assignment":
                rows = assignment.benchmark(args.batch or 32, args.size, args.runs, args.only)
            elif args.benchmark == "engines":
                cache = Path(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
                rows = engines.benchmark(
                    tuple(args.config or CONFIGS),
                    find_reference(args),
                    Repeats(args.seconds, max_runs=1000),
                    cache,
                )
            else:
                rows = evaluation.benchmark(NUM_IMAGES, NUM_DETECTIONS, args.runs)
        if args.markdown:
            print(f"\n{report.markdown(rows)}")
        if args.json:
            report.write(args.json, machine, rows)
    except UserError as error:
        sys.exit(fail(error))


if __name__ == "__main__":
    main()
