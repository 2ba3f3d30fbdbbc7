"""TFDS data sets with the features of `coco/2017`, read from disk without TensorFlow.

They must have been prepared as `array_record`, by TFDS itself or by `nanodet-jax prepare`. Only
the prepared files are read, never the code of a TFDS builder: that of COCO needs TensorFlow.
"""

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from nanodet_jax.data.image_files import shown_size
from nanodet_jax.data.records import Category, Record, coco_ground_truth, make_record
from nanodet_jax.data.sources.coco import read_categories, read_coco, read_ground_truth
from nanodet_jax.errors import UserError

FEATURES = ("image", "image/filename", "image/id", "objects")
OBJECT_FEATURES = ("area", "bbox", "id", "is_crowd", "label")
ROUNDING = 1e-3  # pixels: boxes are float32 shares of a side


class TfdsSource:
    """A split ("train", "validation", "train[:10%]") of a prepared data set, in its own order.

    `root` is the TFDS data_dir that holds `name` (as "coco/2017:1.1.0", with the version), or the
    folder of the data set itself if `name` is empty. Labels and class names are those of TFDS.
    With `judged_by`, a COCO json file, category ids and ground truth are taken from there, so that
    numbers are official: TFDS has no original category ids, and areas without their fraction.

    Raises:
      UserError: if TFDS is not installed, the data set or split is not there, was prepared in
        another format or with other features, or `judged_by` has other categories.
    """

    def __init__(self, name: str, root: Path, split: str, judged_by: Path | None) -> None:
        tfds = import_tfds()
        folder = root / name.replace(":", "/") if name else root
        if not (folder / "features.json").is_file():
            raise UserError(
                f"{folder}: no prepared TFDS data set (features.json is missing); name it with "
                "its version, as coco/2017:1.1.0, or write one with `nanodet-jax prepare`"
            )
        builder = tfds.builder_from_directory(folder)
        features, splits = builder.info.features, builder.info.splits
        lacking = [key for key in FEATURES if key not in features]
        if not lacking:
            lacking = [f"objects/{k}" for k in OBJECT_FEATURES if k not in features["objects"]]
        if lacking:
            raise UserError(f"{folder}: lacks feature {lacking[0]!r}, which coco/2017 has")
        if split.partition("[")[0] not in splits:
            raise UserError(f"{folder}: no split {split!r}; there are {', '.join(splits)}")
        try:
            raw = {"image": tfds.decode.SkipDecoding()}
            self._data = builder.as_data_source(split, decoders=raw)
        except NotImplementedError as error:
            kind = builder.info.file_format.value
            raise UserError(
                f"{folder}: prepared as {kind!r}; without TensorFlow it must be 'array_record'"
            ) from error
        except ValueError as error:
            raise UserError(f"{folder}: no split {split!r}; write a part as train[:10%]") from error
        names = features["objects"]["label"].names
        self._judge = judged_by
        self.categories = tuple(Category(i, name) for i, name in enumerate(names, start=1))
        if judged_by is not None:
            self.categories = _judged_categories(self.categories, judged_by, folder)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        item = self._data[index]
        name = item["image/filename"].decode(errors="backslashreplace")
        data, objects = item["image"], item["objects"]
        # Of an image that is none no share of a side can be told; decoding it says so.
        height, width = shown_size(data) or (0, 0)
        shares = np.asarray(objects["bbox"], np.float32).reshape(-1, 4).astype(np.float64)
        boxes = shares[:, [1, 0, 3, 2]] * (width, height, width, height)  # from y x y x
        # As in a COCO file; area is not asked for, as TFDS rounds that of tiny objects to 0.
        kept = np.all(boxes[:, 2:] - boxes[:, :2] >= 1 - ROUNDING, axis=1)
        return make_record(
            image_id=int(item["image/id"]),
            name=name,
            image=data,
            size=(height, width),
            boxes=boxes[kept],
            labels=np.asarray(objects["label"], np.int32)[kept],
            ignore=np.asarray(objects["is_crowd"], bool)[kept],
            areas=np.asarray(objects["area"], np.float32)[kept],
        )

    def num_boxes(self, index: int) -> int:
        """Boxes of image `index`, crowds and boxes below one pixel included.

        TFDS has no index of them, so the record is read: half a minute and all the bytes for COCO's
        training set. Setting config.data.max_boxes spares it.
        """
        return len(self._data[index]["objects"]["label"])

    def image_size(self, index: int) -> tuple[int, int]:
        """Unknown, 0, since TFDS keeps it in the image alone."""
        return 0, 0

    def ground_truth(self) -> dict[str, Any]:
        """The content of `judged_by`, or the split in COCO's format, for which all is read once."""
        if self._judge is not None:
            return read_ground_truth(self._judge)
        return coco_ground_truth((self[i] for i in range(len(self))), self.categories)


def import_tfds() -> ModuleType:
    """The package `tensorflow_datasets`, an optional dependency.

    Raises:
      UserError: if it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Its imports warn of their own deprecations, which no one here can mend.
            warnings.simplefilter("ignore", DeprecationWarning)
            import array_record  # noqa: F401
            import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"config.data.format=tfds needs {error.name}: pip install 'nanodet_jax[tfds]'"
        ) from error
    return tensorflow_datasets


def _judged_categories(
    categories: tuple[Category, ...], path: Path, folder: Path
) -> tuple[Category, ...]:
    judged = read_categories(read_coco(path), path)
    if len(judged) != len(categories):
        counts = f"{len(judged)} categories, but {folder} has {len(categories)}"
        raise UserError(f"{path}: has {counts}; give the json of the same data set")
    for own, other in zip(categories, judged):
        if own.name.replace("_", " ") != other.name.replace("_", " "):
            names = f"category {other.id} is {other.name!r}, but {own.name!r} in {folder}"
            raise UserError(f"{path}: {names}; give the json of the same data set")
    return judged
