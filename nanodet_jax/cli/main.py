"""The `nanodet-jax` command: predict, convert, prepare, info, doctor."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from nanodet_jax.cli import predict
from nanodet_jax.cli.entry_point import load_config
from nanodet_jax.coco_classes import COCO_CLASSES
from nanodet_jax.doctor import report
from nanodet_jax.errors import UserError
from nanodet_jax.io.weights import load_weights, save_weights
from nanodet_jax.runtime import backend
from nanodet_jax.summary import format_summary, summarize
from nanodet_jax.terminal import say, say_lines, tolerate_closed_output


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what the user can mend is one line on stderr and exit code 2.

    The code is else 0, but for 1 of `doctor` that found something serious, and of `predict` that
    could not read some of the images.
    """
    parser = argparse.ArgumentParser(prog="nanodet-jax", description="NanoDet in JAX")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    predict.add_arguments(commands.add_parser("predict", help="find objects in images"))
    _add_convert(commands.add_parser("convert", help="the original's weights to this project's"))
    _add_prepare(commands.add_parser("prepare", help="COCO json data as a TFDS data set"))
    _add_info(commands.add_parser("info", help="what the network of a config costs"))
    _add_doctor(commands.add_parser("doctor", help="what is wrong with the data of a config"))
    tolerate_closed_output()
    args, flags = parser.parse_known_args(argv)
    if flags and args.run is not doctor:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    try:
        code = args.run(args, flags) if args.run is doctor else args.run(args)
    except UserError as error:
        say(f"error: {' '.join(str(error).split())}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code or 0


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help=".pth or .ckpt of the original, or a workdir")
    parser.add_argument("out", type=Path, help=".npz to write")
    parser.set_defaults(run=convert)


def convert(args: argparse.Namespace) -> None:
    """Write weights as a `.npz` that holds its config and class names too."""
    weights = load_weights(args.source, max_input_side=None)  # nothing is computed
    save_weights(args.out, weights)
    model = weights.config.model
    kind = "nanodet-plus-m" if model.neck == "ghost_pan" else "nanodet-m"
    say(
        f"{args.out}: {kind} of width {model.width}, {model.num_classes} classes, "
        f"{args.out.stat().st_size / 1e6:.1f} MB"
    )


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    for split in ("train", "val"):
        parser.add_argument(f"--{split}-images", type=Path, required=True)
        parser.add_argument(f"--{split}-annotations", type=Path, required=True, help="COCO json")
    parser.add_argument("--out", type=Path, required=True, help="the TFDS data_dir to write to")
    parser.add_argument("--name", required=True, help="of the data set: letters, digits and _")
    parser.set_defaults(run=prepare)


def prepare(args: argparse.Namespace) -> None:
    """Write an array_record data set with the features of TFDS's coco/2017."""
    from nanodet_jax.data.sources import tfds_prepare

    folder = tfds_prepare.prepare(
        args.train_images,
        args.train_annotations,
        args.val_images,
        args.val_annotations,
        args.out,
        args.name,
    )
    say(
        f"{folder} is ready: --config.data.format=tfds --config.data.root={args.out} "
        f"--config.data.name={args.name}:1.0.0"
    )


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="as --config takes it: FILE or FILE:VARIANT")
    parser.add_argument("--classes", type=int, metavar="N", help="default: those of the config")
    parser.set_defaults(run=info)


def info(args: argparse.Namespace) -> None:
    """Print parameters, multiplications and shapes of a config's network. Computes nothing."""
    config = load_config(args.config)
    if args.classes is not None and args.classes <= 0:
        raise UserError(f"--classes={args.classes}: must be positive")
    classes = args.classes or config.model.num_classes or len(COCO_CLASSES)
    model = dataclasses.replace(config.model, num_classes=classes)
    height, width = config.input_size
    say(f"{config.name}: one image of {height} x {width} pixels, {classes} classes")
    if not (args.classes or config.model.num_classes):
        say("(The data has the say on classes; those of COCO are assumed. --classes N: others)")
    say_lines(f"\n{format_summary(summarize(model, config.input_size))}")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [-h] config [--config.FIELD=VALUE ...]"
    parser.add_argument("config", help="as --config takes it: FILE or FILE:VARIANT")
    parser.set_defaults(run=doctor)


def doctor(args: argparse.Namespace, flags: Sequence[str]) -> int:
    """Read all data of a config, and print what is wrong with it: 1 if any of that is serious."""
    config = load_config(args.config, flags)
    backend.prepare()
    found = report.examine(config, progress=sys.stderr.isatty())
    say_lines(report.format_report(found))
    return int(found.serious)


if __name__ == "__main__":
    sys.exit(main())
