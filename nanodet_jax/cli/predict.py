"""`nanodet-jax predict`: draw and list the objects in images."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanodet_jax import visualize
from nanodet_jax.errors import UserError
from nanodet_jax.files import write_json
from nanodet_jax.inference.detector import Detector, ImageDetections, read_image
from nanodet_jax.io.weights import MAX_INPUT_SIDE
from nanodet_jax.progress import track
from nanodet_jax.runtime.process import setup_process
from nanodet_jax.terminal import say

DETECTIONS = "detections.json"
LONGEST_STEM = 240  # bytes; most file systems allow names of 255 bytes with their suffix
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `predict`."""
    parser.description = (
        "Find objects in images. Write a copy of each image with the boxes drawn, and "
        "detections.json with all objects of a score above 0.05."
    )
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of images")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=Path, help="a .pth, .ckpt or .npz file")
    source.add_argument("--workdir", type=Path, help="a run: its best checkpoint is used")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        help="output folder (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.35,
        help="lowest score of an object that is drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--draw-all", action="store_true", help="draw every class of an object, not only its best"
    )
    parser.add_argument(
        "--max-megapixels",
        type=float,
        help="skip larger images (default: the limit that the weights were trained with)",
    )
    parser.add_argument(
        "--max-input-side",
        type=float,
        default=MAX_INPUT_SIDE,
        metavar="PIXELS",
        help="refuse weights with a larger input (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, _: Sequence[str]) -> int:
    """Draw and list the objects; return 1 if some of several images cannot be read, otherwise 0.

    If an error or Ctrl-C ends the command, `detections.json` contains the images done by then.
    """
    files = [file for path in args.images for file in _image_files(path)]
    names = _picture_names(files)
    _refuse_overwriting(files, args.out, names)
    setup_process()
    detector = Detector.load(args.weights or args.workdir, args.max_input_side, args.max_megapixels)
    found: dict[str, list[dict[str, Any]]] = {}
    skipped = 0
    try:
        pairs = zip(files, names)
        for file, name in track(pairs, len(files), "predict", "images", visible=len(files) > 1):
            try:
                pixels = read_image(file, detector.max_megapixels)
            except UserError as error:
                if len(files) == 1:
                    raise
                skipped += 1
                say(f"skipped: {error}")
                continue
            found[str(file)] = _predict_one(detector, file, pixels, args.out / name, args)
    except BaseException:
        if found:
            write_json(args.out / DETECTIONS, found, indent=2)
            path = args.out / DETECTIONS
            say(f"stopped; {path} contains {len(found)} of {len(files)} images")
        raise
    write_json(args.out / DETECTIONS, found, indent=2)
    more = f"; {skipped} of {len(files)} images could not be read" if skipped else ""
    say(f"{args.out} contains {len(files) - skipped} pictures and {DETECTIONS}{more}")
    return int(skipped > 0)


def _predict_one(
    detector: Detector, file: Path, pixels: np.ndarray, picture: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Detect, draw and count the objects in one image; return them as json values."""
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
        raise UserError(f"{path}: contains no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def _picture_names(files: list[Path]) -> list[str]:
    """Name one picture per file; add numbers to names that are equal, ignoring case."""
    names: list[str] = []
    used: set[str] = set()
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
    """Refuse to write a picture over one of the images."""
    # A link is not followed in the last part of a path: the link itself would be replaced.
    originals = {Path(os.path.realpath(file.parent), file.name) for file in files}
    for name in names:
        if Path(os.path.realpath(out), name) in originals:
            raise UserError(
                f"{out / name}: is one of the images, and its drawn copy would replace it; give "
                "another --out"
            )


def _as_json(found: ImageDetections) -> list[dict[str, Any]]:
    return [
        {"class": name, "score": float(score), "box_xyxy": box.tolist()}
        for box, score, name in zip(found.boxes, found.scores, found.class_names)
    ]
