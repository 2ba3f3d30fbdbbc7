"""`nanodet-jax info`: print the cost of a config's network."""

import argparse
import dataclasses
from collections.abc import Sequence

from nanodet_jax.cli.config_flags import add_config, load_config
from nanodet_jax.coco_classes import COCO_CLASSES
from nanodet_jax.errors import UserError
from nanodet_jax.summary import format_summary, summarize
from nanodet_jax.terminal import say, say_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `info`."""
    parser.description = (
        "Print the parameters, multiply-adds and shapes of a config's network, without running it."
    )
    add_config(parser)
    parser.add_argument(
        "--classes", type=int, metavar="N", help="number of classes (default: the config's)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Print the table."""
    config = load_config(args.config, overrides)
    if args.classes is not None and args.classes <= 0:
        raise UserError(f"--classes={args.classes}: must be positive")
    classes = args.classes or config.model.num_classes or len(COCO_CLASSES)
    model = dataclasses.replace(config.model, num_classes=classes)
    height, width = config.input_size
    say(f"{config.name}: one image of {height} x {width} pixels, {classes} classes")
    if not (args.classes or config.model.num_classes):
        say(
            "(The dataset defines the number of classes; COCO's is assumed here. "
            "To set a different number, use --classes.)"
        )
    say_lines(f"\n{format_summary(summarize(model, config.input_size))}")
    return 0
