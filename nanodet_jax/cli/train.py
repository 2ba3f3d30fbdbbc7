"""`nanodet-jax train`: train a detector, or resume a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nanodet_jax.cli.config_flags import add_config, add_field_names, load_config
from nanodet_jax.evaluation.coco_metrics import format_table
from nanodet_jax.runtime import distributed
from nanodet_jax.terminal import say, say_lines
from nanodet_jax.training.loop import train_and_evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    parser.description = (
        "Train a detector and evaluate it, or resume the run in --workdir. "
        "Ctrl-C saves a checkpoint; the same command resumes from it."
    )
    add_config(parser, default="shapes")
    parser.add_argument(
        "--workdir", type=Path, help="folder of the run (default: runs/<config.name>)"
    )
    add_field_names(parser)
    parser.set_defaults(run=run, terminate_on_sigint=True)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train, and print the metrics of the last evaluation."""
    config = load_config(args.config, overrides)
    workdir = args.workdir or Path("runs") / config.name
    metrics = train_and_evaluate(config, workdir)
    if distributed.is_writer():
        if metrics:
            say_lines(format_table(metrics))
        pictures = "detections" if metrics else "a training batch"
        say(f"{workdir} contains checkpoints, metrics.jsonl and pictures of {pictures}")
    return 0
