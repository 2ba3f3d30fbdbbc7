"""`nanodet-jax doctor`: find problems in the data of a config."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from nanodet_jax.cli.config_flags import add_config, load_config
from nanodet_jax.doctor import report
from nanodet_jax.doctor.fix.dataset import correct_dataset, format_fixed
from nanodet_jax.runtime.process import setup_process
from nanodet_jax.terminal import say_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `doctor`."""
    parser.description = (
        "Read all images and annotations of a config, and print their problems by severity, each "
        "with a suggested fix. The exit code is 0 if no problem is serious (with --fix: if no "
        "serious problem remains and no file is left out of the copy), 1 otherwise, and 2 if the "
        "config cannot be read or a copy cannot be written."
    )
    add_config(parser)
    parser.add_argument("--all", action="store_true", help="list all examples of each problem")
    parser.add_argument("--json", action="store_true", help="print the report as json")
    parser.add_argument(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write corrected copies of the annotations to the new folder OUT, and print the "
        "serious problems that remain instead of a report",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Read the data, write corrected copies if requested, and print the report."""
    config = load_config(args.config, overrides)
    fixed = None
    if args.fix is not None:
        fixed = correct_dataset(config, args.fix)
        config = load_config(args.config, [*overrides, *fixed.flags])
    setup_process()
    found = report.examine(config)
    if args.json:
        changes = {} if fixed is None else fixed._asdict()
        print(json.dumps(changes | report.report_to_dict(found), indent=1), flush=True)
    elif fixed is None:
        say_lines(report.format_report(found, all_examples=args.all))
    else:
        say_lines(f"{format_fixed(fixed, args.fix)}\n\n{report.format_serious(found)}")
    return int(found.serious or bool(fixed and fixed.left_out))
