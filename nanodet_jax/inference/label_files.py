"""Write detections as COCO json or YOLO text annotations, to correct them and train on them."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
import yaml

from nanodet_jax.data.records import Category, Record, coco_ground_truth, is_name, make_record
from nanodet_jax.errors import UserError
from nanodet_jax.files import atomic_write, write_json

LabelFormat = Literal["coco", "yolo"]
COCO_FILE, YOLO_FOLDER, YOLO_FILES = "labels.json", "labels", ("data.yaml", "classes.txt")
# YOLO looks for the image of labels/a.txt in this folder.
YOLO_IMAGES = "images"


class LabelFiles:
    """Annotations of images, in a new file or folder in `out`.

    Images are named by their path relative to `root`, the folder that contains all given paths.
    With "coco", `close` writes `labels.json`. With "yolo", `add` writes `labels/NAME.txt`, and
    `close` writes `data.yaml` and `classes.txt`. An image without boxes is listed too: in the json
    file, or with an empty text file.
    """

    def __init__(
        self,
        kind: LabelFormat,
        out: Path,
        given: Sequence[Path],
        files: Sequence[Path],
        class_names: Sequence[str],
    ) -> None:
        """Check the names of the images, and that no annotations would be overwritten.

        Args:
          kind: format of the annotations.
          out: folder of the annotations.
          given: the files and folders that the user named.
          files: the images in them.
          class_names: names by label.

        Raises:
          UserError: if the name of an image cannot be used, if two images would share a label file,
            or if annotations already exist, because they may contain manual corrections.
        """
        self.kind, self.out = kind, out
        self.root = _common_folder(given)
        self._categories = tuple(Category(i, name) for i, name in enumerate(class_names, start=1))
        self._records: dict[str, Record] = {}
        self._refuse_overwriting()
        owners: dict[str, Path] = {}
        for file in files:
            name = self._name(file)
            if not is_name(name):
                raise UserError(f"{file}: labels cannot contain this file name; rename the file")
            if kind == "yolo":
                self._check_text_name(file, name, owners)

    @property
    def path(self) -> Path:
        """The json file, or the folder of text files."""
        return self.out / (COCO_FILE if self.kind == "coco" else YOLO_FOLDER)

    def add(self, file: Path, size: tuple[int, int], boxes: np.ndarray, labels: np.ndarray) -> None:
        """Add the annotations of one image. Leave out boxes less than one pixel wide or high.

        Args:
          file: the image, one of `files`.
          size: (height, width).
          boxes: [n, 4] xyxy, pixels of the image.
          labels: [n] integers, 0 .. C-1.

        Raises:
          UserError: naming the file that cannot be written.
        """
        name, sides = self._name(file), boxes[:, 2:] - boxes[:, :2]
        kept = np.all(sides >= 1, axis=1)
        boxes, labels, areas = boxes[kept], labels[kept], sides[kept].prod(axis=1)
        if self.kind == "coco":
            number = len(self._records) + 1
            self._records.setdefault(
                name,
                make_record(number, name, file, size, boxes, labels, [False] * len(labels), areas),
            )
            return
        height, width = size
        fractions = boxes.astype(float) / (width, height, width, height)
        lines = "".join(
            f"{label} {(x1 + x2) / 2:.8f} {(y1 + y2) / 2:.8f} {x2 - x1:.8f} {y2 - y1:.8f}\n"
            for label, (x1, y1, x2, y2) in zip(labels, fractions.tolist())
        )
        _write_text(self.path / _text_name(name), lines)

    def close(self) -> None:
        """Write the files that all images share.

        Raises:
          UserError: naming the file that cannot be written.
        """
        if self.kind == "coco":
            write_json(self.path, coco_ground_truth(self._records.values(), self._categories))
            return
        names = [category.name for category in self._categories]
        splits = {"train": YOLO_IMAGES, "val": YOLO_IMAGES}
        yaml_file, classes_file = (self.out / name for name in YOLO_FILES)
        _write_text(yaml_file, yaml.safe_dump({**splits, "names": names}, sort_keys=False))
        _write_text(classes_file, "".join(f"{name}\n" for name in names))

    def next_step(self) -> str:
        """Return one sentence on how to use the annotations as a dataset."""
        if self.kind == "coco":
            return f"the images are named relative to {self.root}"
        return f"to train on them, copy the images from {self.root} to {self.out / YOLO_IMAGES}"

    def _name(self, file: Path) -> str:
        return PurePath(os.path.relpath(os.path.abspath(file), self.root)).as_posix()

    def _check_text_name(self, file: Path, name: str, owners: dict[str, Path]) -> None:
        # To find the label file, readers replace the last folder named `images` in a path.
        if YOLO_IMAGES in PurePath(name).parts[:-1]:
            folder = self.root / name[: name.rindex(f"{YOLO_IMAGES}/")] / YOLO_IMAGES
            raise UserError(
                f"{file}: YOLO labels need image names relative to {folder}; run predict on that "
                "folder alone"
            )
        owner = owners.setdefault(_text_name(name).lower(), file)
        if self._name(owner) != name:
            raise UserError(
                f"{owner} and {file}: would share the label file {_text_name(name)}; rename one of "
                "them"
            )

    def _refuse_overwriting(self) -> None:
        names = YOLO_FILES if self.kind == "yolo" else ()
        for path in (self.path, *(self.out / name for name in names)):
            if os.path.lexists(path):
                raise UserError(
                    f"{path}: already exists, and corrections in it would be lost; use a different "
                    "--out, or move it elsewhere"
                )


def _common_folder(paths: Sequence[Path]) -> Path:
    folders = [os.path.abspath(path if path.is_dir() else path.parent) for path in paths]
    try:
        return Path(os.path.commonpath(folders))
    except ValueError as error:  # different drives on Windows
        message = "labels need all images on one drive; pass only images from one drive"
        raise UserError(message) from error


def _text_name(image: str) -> str:
    return os.path.splitext(image)[0] + ".txt"


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
