"""`nanodet-jax predict`: draw and list the objects in images."""

import argparse
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nanodet_jax import visualize
from nanodet_jax.errors import UserError
from nanodet_jax.files import write_json
from nanodet_jax.inference.detector import Detector, Found, read_image
from nanodet_jax.io.weights import MAX_INPUT_SIDE
from nanodet_jax.terminal import say

DETECTIONS = "detections.json"
LONGEST_STEM = 240  # bytes of a file name; most file systems allow 255 with its ending
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
            found[str(file)] = _predict_one(detector, file, pixels, args.out / name, args.threshold)
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
    detector: Detector, file: Path, pixels: np.ndarray, picture: Path, threshold: float
) -> list[dict]:
    """Detections of one image as json has them; they are drawn and counted too."""
    one = detector.detect_one(pixels)
    drawn = visualize.draw_detections(
        pixels, one.boxes, one.scores, one.labels, detector.class_names, threshold
    )
    visualize.save_image(picture, drawn)
    shown = [n for n, score in zip(one.class_names, one.scores) if score >= threshold]
    counts = ", ".join(f"{shown.count(n)} {n}" for n in dict.fromkeys(shown))
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


def _as_json(found: Found) -> list[dict]:
    return [
        {"class": name, "score": float(score), "box_xyxy": box.tolist()}
        for box, score, name in zip(found.boxes, found.scores, found.class_names)
    ]
