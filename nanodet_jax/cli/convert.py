"""`nanodet-jax convert`: convert weights to the format of this project."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nanodet_jax.io.weights import load_weights, save_weights
from nanodet_jax.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `convert`."""
    parser.description = "Convert weights to .npz, together with their config and class names."
    parser.add_argument(
        "source",
        type=Path,
        help=".pth or .ckpt file of the original, a workdir, or the name of published weights",
    )
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, _: Sequence[str]) -> int:
    """Convert the weights, and print their architecture and size."""
    weights = load_weights(args.source, max_input_side=None)  # the network is not run
    save_weights(args.out, weights)
    model = weights.config.model
    kind = "nanodet-plus-m" if model.neck == "ghost_pan" else "nanodet-m"
    say(
        f"{args.out}: {kind} of width {model.width}, {model.num_classes} classes, "
        f"{args.out.stat().st_size / 1e6:.1f} MB"
    )
    return 0
