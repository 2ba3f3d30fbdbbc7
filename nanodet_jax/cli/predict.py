"""`nanodet-jax predict`: draw and list the objects in images."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from nanodet_jax import visualize
from nanodet_jax.cli.weights_flag import add_weights
from nanodet_jax.errors import UserError
from nanodet_jax.files import write_json
from nanodet_jax.inference.detector import Detector
from nanodet_jax.inference.image_list import (
    ImageList,
    list_images,
    name_pictures,
    refuse_overwriting,
)
from nanodet_jax.inference.inputs import read_image
from nanodet_jax.inference.label_files import LabelFiles, LabelFormat
from nanodet_jax.inference.postprocess import SCORE_THRESHOLD
from nanodet_jax.inference.results import ImageDetections, check_selection
from nanodet_jax.io.weights import MAX_INPUT_SIDE
from nanodet_jax.progress import track
from nanodet_jax.runtime.process import setup_process
from nanodet_jax.terminal import join_first, say

DETECTIONS = "detections.json"
SHOWN_SKIPS = 3  # names printed for each reason for skipping files, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `predict`."""
    parser.description = (
        "Find objects in images. Write a copy of each image with the boxes drawn, and "
        "detections.json with all objects that have a score above 0.05."
    )
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of images")
    parser.add_argument(
        "--recursive", action="store_true", help="also search subfolders of the given folders"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    add_weights(source)
    source.add_argument("--workdir", type=Path, help="workdir of a run, to use its best checkpoint")
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
        help="lowest score at which an object is drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--draw-all", action="store_true", help="draw every class of an object, not only the best"
    )
    parser.add_argument(
        "--save-labels",
        choices=get_args(LabelFormat),
        help="also write the drawn objects as annotations that you can correct and train on",
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

    If an error or Ctrl-C ends the command, the written files contain all results up to that point.
    """
    check_selection((), args.threshold, None, None)
    if args.threshold < SCORE_THRESHOLD:
        say(f"note: objects with a score of {SCORE_THRESHOLD} or less are never reported")
    listed = list_images(args.images, args.recursive, args.out)
    files = listed.files
    names = name_pictures(files)
    refuse_overwriting(files, args.out, names)
    setup_process()
    detector = Detector.load(args.weights or args.workdir, args.max_input_side, args.max_megapixels)
    labels = None
    if args.save_labels:
        labels = LabelFiles(args.save_labels, args.out, args.images, files, detector.class_names)
    found: dict[str, list[dict[str, Any]]] = {}
    unreadable: list[str] = []
    try:
        pairs = zip(files, names)
        for file, name in track(pairs, len(files), "predict", "images", visible=len(files) > 1):
            try:
                pixels = read_image(file, detector.max_megapixels)
            except UserError as error:
                if len(files) == 1:
                    raise
                unreadable.append(str(error))
                say(f"skipped: {error}")
                continue
            result = detector.detect_one(pixels)
            shown = _draw(result, file, pixels, args.out / name, args)
            if labels:
                labels.add(file, result.size, shown.boxes, shown.labels)
            found[str(file)] = result.to_dict()["objects"]
    except BaseException:
        if found:
            _write(args.out, found, labels)
            path = args.out / DETECTIONS
            say(f"stopped; {path} contains the objects in {len(found)} of {len(files)} images")
        raise
    _write(args.out, found, labels)
    count = len(files) - len(unreadable)
    more = f"; {len(unreadable)} of {len(files)} images could not be read" if unreadable else ""
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    say(f"{args.out} contains {pictures} and {DETECTIONS}{more}")
    if labels:
        images = "1 image" if count == 1 else f"{count} images"
        say(f"{labels.path} contains the labels of {images}; {labels.next_step()}")
    _report_skipped(listed, unreadable, args.recursive)
    return int(bool(unreadable))


def _draw(
    result: ImageDetections,
    file: Path,
    pixels: np.ndarray,
    picture: Path,
    args: argparse.Namespace,
) -> ImageDetections:
    """Draw and count the objects in one image; return those drawn."""
    found = result.filter(threshold=args.threshold)
    chosen = visualize.select_detections(
        found.boxes, found.scores, args.threshold, draw_all=args.draw_all
    )
    shown = found[chosen]
    visualize.save_image(picture, shown.draw(pixels, draw_all=True))
    counts = ", ".join(f"{count} {name}" for name, count in sorted(Counter(shown.names).items()))
    if len(result):
        nothing = f"nothing above {args.threshold:g}; best score {result.scores[0]:.2f}"
    else:
        nothing = f"nothing above {SCORE_THRESHOLD}"
    say(f"{file}: {counts or nothing}")
    return shown


def _write(out: Path, found: dict[str, list[dict[str, Any]]], labels: LabelFiles | None) -> None:
    write_json(out / DETECTIONS, found, indent=2)
    if labels:
        labels.close()


def _report_skipped(listed: ImageList, unreadable: list[str], recursive: bool) -> None:
    """Print what was skipped: how many, why, and the first few names."""
    folders = "hidden folders or links" if recursive else "folders; search them with --recursive"
    for why, items in (
        ("unreadable", unreadable),
        ("no image suffix", listed.others),
        (folders, listed.folders),
    ):
        if items:
            shown = join_first([str(item) for item in items], SHOWN_SKIPS)
            say(f"skipped {len(items)} ({why}): {shown}")
