"""The `nanodet-jax` command: predict, convert, prepare, info, doctor."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nanodet_jax import visualize
from nanodet_jax.cli.entry_point import load_config
from nanodet_jax.coco_classes import COCO_CLASSES
from nanodet_jax.doctor import report
from nanodet_jax.errors import UserError
from nanodet_jax.files import write_json
from nanodet_jax.inference.detector import Detector, ImageDetections, read_image
from nanodet_jax.io.weights import MAX_INPUT_SIDE, load_weights, save_weights
from nanodet_jax.runtime import backend
from nanodet_jax.summary import format_summary, summarize
from nanodet_jax.terminal import say, say_lines, tolerate_closed_output

DETECTIONS = "detections.json"
LONGEST_STEM = 240  # bytes of a file name; most file systems allow 255 with its ending
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what the user can mend is one line on stderr and exit code 2.

    The code is else 0, but for 1 of `doctor` that found something serious, and of `predict` that
    could not read some of the images.
    """
    parser = argparse.ArgumentParser(prog="nanodet-jax", description="NanoDet in JAX")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_predict(commands.add_parser("predict", help="find objects in images"))
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


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=Path, help="a .pth, .ckpt or .npz file")
    source.add_argument("--workdir", type=Path, help="a run, whose best checkpoint is taken")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.35, help="least score that is drawn (%(default)s)"
    )
    parser.add_argument(
        "--draw-all", action="store_true", help="draw every class of an object, not only its best"
    )
    parser.add_argument(
        "--max-megapixels", type=float, help="larger images are not read (default: as in training)"
    )
    parser.add_argument(
        "--max-input-side",
        type=float,
        default=MAX_INPUT_SIDE,
        help="weights that ask for a larger input are refused (%(default)s pixels)",
    )
    parser.set_defaults(run=predict)


def predict(args: argparse.Namespace) -> int:
    """Write a picture with boxes per image, and `detections.json` with all above 0.05.

    Of several images those that cannot be read are reported and left out; the answer is then 1.
    Where an error or Ctrl-C ends the command, `detections.json` holds the images done by then.
    """
    files = [file for path in args.images for file in _image_files(path)]
    names = _picture_names(files)
    _refuse_overwriting(files, args.out, names)
    detector = Detector.load(args.weights or args.workdir, args.max_input_side, args.max_megapixels)
    found: dict[str, list[dict]] = {}
    left_out = 0
    try:
        for file, name in tqdm(list(zip(files, names)), unit="img", disable=len(files) == 1):
            try:
                pixels = read_image(file, detector.max_megapixels)
            except UserError as error:
                if len(files) == 1:
                    raise
                left_out += 1
                say(f"left out: {error}")
                continue
            found[str(file)] = _predict_one(detector, file, pixels, args.out / name, args)
    except BaseException:
        if found:
            write_json(args.out / DETECTIONS, found, indent=2)
            say(f"stopped; {DETECTIONS} in {args.out} holds {len(found)} of {len(files)} images")
        raise
    write_json(args.out / DETECTIONS, found, indent=2)
    more = f"; {left_out} of {len(files)} images could not be read" if left_out else ""
    say(f"{len(files) - left_out} pictures and {DETECTIONS} are in {args.out}{more}")
    return int(left_out > 0)


def _predict_one(
    detector: Detector, file: Path, pixels: np.ndarray, picture: Path, args: argparse.Namespace
) -> list[dict]:
    """Draw the detections of one image, print their counts, and return all of them for json."""
    one = detector.detect_one(pixels)
    shown = visualize.select_detections(
        one.boxes, one.scores, args.threshold, draw_all=args.draw_all
    )
    drawn = visualize.draw_detections(
        pixels, one.boxes[shown], one.scores[shown], one.labels[shown], detector.class_names,
        args.threshold, draw_all=True,
    )  # fmt: skip
    visualize.save_image(picture, drawn)
    names = [one.class_names[index] for index in shown]
    counts = ", ".join(f"{names.count(n)} {n}" for n in dict.fromkeys(names))
    say(f"{file}: {counts or 'nothing'}")
    return _as_json(one)


def _image_files(path: Path) -> list[Path]:
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise UserError(f"{path}: no such image or folder")
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not files:
        raise UserError(f"{path}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def _picture_names(files: list[Path]) -> list[str]:
    """One name per file, numbered where two would be the same, in small letters too."""
    names, used = [], set()
    for file in files:
        stem = file.stem
        if len(os.fsencode(stem)) > LONGEST_STEM:
            stem = os.fsencode(stem)[:LONGEST_STEM].decode(errors="ignore")
        name, number = f"{stem}.jpg", 2
        while name.lower() in used:
            name, number = f"{stem}_{number}.jpg", number + 1
        used.add(name.lower())
        names.append(name)
    return names


def _refuse_overwriting(files: list[Path], out: Path, names: list[str]) -> None:
    """Check that no drawn picture takes the place of an image that is read."""
    # Of the last part no link is followed: it would be replaced itself.
    originals = {Path(os.path.realpath(file.parent), file.name) for file in files}
    for name in names:
        if Path(os.path.realpath(out), name) in originals:
            raise UserError(
                f"{out / name}: is one of the images, and its drawn copy would replace it; give "
                "another --out"
            )


def _as_json(found: ImageDetections) -> list[dict]:
    return [
        {"class": name, "score": float(score), "box_xyxy": box.tolist()}
        for box, score, name in zip(found.boxes, found.scores, found.class_names)
    ]


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
