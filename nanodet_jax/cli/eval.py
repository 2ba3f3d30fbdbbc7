"""`nanodet-jax eval`: evaluate weights or a run on the validation images of a config."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nanodet_jax.cli.config_flags import add_config, load_config
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation.coco_metrics import format_table
from nanodet_jax.evaluation.evaluate import evaluate
from nanodet_jax.files import make_folder
from nanodet_jax.terminal import say, say_lines

EVALUATORS = ("pycocotools", "hotcoco")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `eval`."""
    parser.description = (
        "Evaluate weights on the validation split of a config. Print the COCO metrics and the AP "
        "of each class; write metrics.json, detections.json and pictures of detections."
    )
    add_config(parser, default="shapes")
    parser.add_argument("--workdir", type=Path, help="a run: its best checkpoint is evaluated")
    parser.add_argument("--weights", type=Path, help="a .pth, .ckpt or .npz file")
    parser.add_argument(
        "--out", type=Path, help="output folder (default: WORKDIR/eval, or runs/eval)"
    )
    parser.add_argument(
        "--evaluator",
        choices=EVALUATORS,
        help="library that computes the metrics; both give the same numbers (default: hotcoco if "
        "installed, since it is faster)",
    )
    parser.add_argument(  # the old name
        "--judge", dest="old_evaluator", choices=EVALUATORS, help=argparse.SUPPRESS
    )
    parser.set_defaults(run=run, terminate_on_sigint=True)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Evaluate, print the metrics and write them."""
    if args.old_evaluator:
        say("note: --judge is now called --evaluator")
    weights = args.weights or args.workdir
    if not weights or (args.weights and args.workdir):
        raise UserError("give either --workdir of a run or --weights of a file")
    config = load_config(args.config, overrides)
    # A workdir may come from someone else: its eval/ must not be a link to another folder.
    default = args.workdir / "eval" if args.workdir else Path("runs/eval")
    out = args.out or make_folder(default)
    say_lines(format_table(evaluate(config, weights, out, args.evaluator or args.old_evaluator)))
    say(f"{out} contains metrics.json, detections.json and pictures of detections")
    return 0
