"""`nanodet-jax prepare`: write a COCO dataset as a TFDS dataset."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nanodet_jax.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare`."""
    parser.description = (
        "Write images with COCO annotations as an array_record dataset with the same features as "
        "coco/2017 in TFDS."
    )
    for split in ("train", "val"):
        parser.add_argument(
            f"--{split}-images", type=Path, required=True, help="folder of the images"
        )
        parser.add_argument(
            f"--{split}-annotations", type=Path, required=True, help="COCO json file"
        )
    parser.add_argument("--out", type=Path, required=True, help="TFDS data_dir to write to")
    parser.add_argument(
        "--name", required=True, help="name of the dataset: letters, digits and underscores"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, _: Sequence[str]) -> int:
    """Write the dataset, and print the flags that select it."""
    from nanodet_jax.data.sources import tfds_prepare  # TFDS is an optional dependency

    folder = tfds_prepare.prepare(
        args.train_images,
        args.train_annotations,
        args.val_images,
        args.val_annotations,
        args.out,
        args.name,
    )
    say(
        f"{folder} is ready; use --config.data.format=tfds --config.data.root={args.out} "
        f"--config.data.name={args.name}:1.0.0"
    )
    return 0
