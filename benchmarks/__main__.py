"""Measure this project on this machine: compilation, training, inference, the loader, memory.

    python -m benchmarks [--quick] [--only REGEX] [--json FILE] [--reference CHECKOUT]
    python -m benchmarks assignment [...]    # of NanoDet-Plus alone: `benchmarks/assignment.py`
    python -m benchmarks evaluation [...]    # COCO's numbers: `benchmarks/evaluation.py`
    python -m benchmarks engines --reference CHECKOUT [...]    # ONNX Runtime and ncnn beside ours

Every row is measured in a process of its own that finds its programs compiled, and printed at once.
The first run compiles; later ones, with the same cache, take a third of the time.
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
from benchmarks.machine import describe
from benchmarks.plan import ON_ACCELERATOR, ON_CPU, Setting, tasks
from benchmarks.processes import fresh
from benchmarks.reference import Reference
from benchmarks.timing import Effort, Row
from nanodet_jax.cli.main import fail
from nanodet_jax.config import Precision
from nanodet_jax.errors import UserError
from nanodet_jax.runtime.process import setup_process

IMAGES, DETECTIONS = 5000, 100  # of evaluation: COCO's validation set, what suppression may leave
KINDS = ("table", "assignment", "evaluation", "engines")
CONFIGS = ("configs/coco.py:nanodet-m_320", "configs/coco.py:nanodet-plus-m_320")


def parse() -> argparse.Namespace:
    """Flags of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", nargs="?", choices=KINDS, default="table")
    add("--config", action="append", metavar="FILE[:VARIANT]", help=f"default: {CONFIGS}")
    add("--precision", action="append", choices=get_args(Precision),
        help="default: float32, and on accelerators bf16")  # fmt: skip
    add("--only", default="", metavar="REGEX", help="searched in the names of the rows")
    add("--quick", action="store_true", help="the most telling rows, a second each")
    add("--seconds", type=float, default=3.0, help="that a row is measured for, at least")
    add("--batch", type=int, help="of a step; default: 8, on accelerators 256; assignment: 32")
    add("--reference", type=Path, metavar="CHECKOUT", help="of the original NanoDet, to compare")
    add("--reference-python", default=sys.executable, help="with PyTorch; default: this one")
    add("--images", type=Path, help="folder of photographs, for the rows that read data")
    add("--annotations", type=Path, help="COCO json of --images")
    add("--cache", type=Path, help="of compiled programs; default: that of train.py")
    add("--json", type=Path, help="file to write the results to")
    add("--from", type=Path, dest="measured", help="rows of a file of --json; nothing is measured")
    add("--markdown", action="store_true", help="print the README's table, too")
    add("--size", type=int, default=320, help="of assignment: side of the input")
    add("--runs", type=int, default=5, help="of assignment and evaluation")
    args = parser.parse_args()
    if args.what == "engines" and not args.reference:
        parser.error("engines: --reference CHECKOUT of the original is needed")
    if (args.images is None) != (args.annotations is None):
        parser.error("--images and --annotations belong together")
    return args


def find_reference(args: argparse.Namespace) -> Reference:
    """The original that the flags name. Raises UserError if it cannot run."""
    reference = Reference(args.reference.resolve(), args.reference_python)
    reference.check()
    return reference


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Row]]:
    """Machine and rows; prints each row when it is measured, and what failed.

    Raises:
      UserError: if what the flags name cannot be used.
    """
    setup_process(args.cache)
    cache = Path(jax.config.jax_compilation_cache_dir).resolve()  # type: ignore[attr-defined]
    # Asked in another process: a device that this one had started would lack memory for the rest.
    machine = fresh(describe, cache=cache)
    accelerator = machine["platform"] != "cpu"
    scale = ON_ACCELERATOR if accelerator else ON_CPU
    reference = find_reference(args) if args.reference else None
    precisions = ("float32", "bf16") if accelerator else ("float32",)
    columns = report.columns(accelerator, reference is not None)
    print(f"{report.describe(machine)}\n\n{report.LEGEND}\n\n{report.header(columns)}", flush=True)
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        draw_files(Path(folder))
        setting = Setting(
            configs=tuple(args.config or CONFIGS),
            precisions=tuple(args.precision or precisions),
            scale=scale._replace(batch=args.batch) if args.batch else scale,
            effort=Effort(1.0, least=3) if args.quick else Effort(args.seconds),
            cache=cache,
            files=Path(folder),
            cpus=machine["cpus"],
            quick=args.quick,
            reference=reference,
            images=args.images and args.images.resolve(),
            annotations=args.annotations and args.annotations.resolve(),
        )
        for task in tasks(setting):
            if not re.search(args.only, task.name):
                continue
            try:
                measured = task.rows()
            except Exception as error:  # out of memory, say: the other rows are worth having
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
        elif args.what == "table":
            machine, rows = measure(args)
            print(f"\n{len(rows)} rows in {(time.perf_counter() - started) / 60:.1f} minutes")
        else:
            setup_process(args.cache)
            machine = describe()
            if args.what == "assignment":
                rows = assignment.benchmark(args.batch or 32, args.size, args.runs, args.only)
            elif args.what == "engines":
                cache = Path(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
                rows = engines.benchmark(
                    tuple(args.config or CONFIGS),
                    find_reference(args),
                    Effort(args.seconds, most=1000),
                    cache,
                )
            else:
                rows = evaluation.benchmark(IMAGES, DETECTIONS, args.runs)
        if args.markdown:
            print(f"\n{report.markdown(rows)}")
        if args.json:
            report.write(args.json, machine, rows)
    except UserError as error:
        sys.exit(fail(error))


if __name__ == "__main__":
    main()
