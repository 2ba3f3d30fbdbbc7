"""Source for TFDS datasets with the features of `coco/2017`, read without TensorFlow.

Features: https://www.tensorflow.org/datasets/catalog/coco

The dataset must be prepared as `array_record`, by TFDS itself or by `nanodet-jax prepare`. Only the
prepared files are read. The code of the TFDS builder is not run, since COCO's needs TensorFlow.
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
ROUNDING = 1e-3  # pixels; rounding error, since boxes are float32 fractions of a side


class TfdsSource:
    """A split ("train", "validation", "train[:10%]") of a prepared dataset, in the stored order.

    `root` is the TFDS data_dir of `name` (with the version, such as "coco/2017:1.1.0"), or the
    folder of the dataset itself if `name` is empty. Labels and class names come from TFDS.
    If `annotations`, a COCO json file, is given, then category ids, class names and ground truth
    come from this file. This makes the metrics official: TFDS lacks the original category ids, and
    truncates areas.

    Raises:
      UserError: if TFDS is not installed; if the dataset or split is missing, or prepared in a
        different format or with different features; if `annotations` has different categories.
    """

    def __init__(self, name: str, root: Path, split: str, annotations: Path | None) -> None:
        tfds = import_tfds()
        folder = root / name.replace(":", "/") if name else root
        if not (folder / "features.json").is_file():
            raise UserError(
                f"{folder}: not a prepared TFDS dataset (features.json is missing); give the name "
                "with the version, such as coco/2017:1.1.0, or create a dataset with "
                "`nanodet-jax prepare`"
            )
        builder = tfds.builder_from_directory(folder)
        features, splits = builder.info.features, builder.info.splits
        lacking = [key for key in FEATURES if key not in features]
        if not lacking:
            lacking = [f"objects/{k}" for k in OBJECT_FEATURES if k not in features["objects"]]
        if lacking:
            raise UserError(f"{folder}: lacks the feature {lacking[0]!r} of coco/2017")
        if split.partition("[")[0] not in splits:
            raise UserError(f"{folder}: no split {split!r}; choose from {', '.join(splits)}")
        try:
            raw = {"image": tfds.decode.SkipDecoding()}
            self._data = builder.as_data_source(split, decoders=raw)
        except NotImplementedError as error:
            kind = builder.info.file_format.value
            raise UserError(
                f"{folder}: prepared as {kind!r}; only 'array_record' can be read without "
                "TensorFlow"
            ) from error
        except ValueError as error:
            raise UserError(f"{folder}: no split {split!r}; write a part as train[:10%]") from error
        names = features["objects"]["label"].names
        self._annotations = annotations
        self.categories = tuple(Category(i, name) for i, name in enumerate(names, start=1))
        if annotations is not None:
            self.categories = _official_categories(self.categories, annotations, folder)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        item = self._data[index]
        name = item["image/filename"].decode(errors="backslashreplace")
        data, objects = item["image"], item["objects"]
        # The size of a broken image is unknown; the error is raised when it is decoded.
        height, width = shown_size(data) or (0, 0)
        fractions = np.asarray(objects["bbox"], np.float32).reshape(-1, 4).astype(np.float64)
        boxes = fractions[:, [1, 0, 3, 2]] * (width, height, width, height)  # from (y, x, y, x)
        # Skip boxes as for a COCO file, but ignore areas: TFDS truncates small areas to 0.
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

    def name(self, index: int) -> str:
        """Return `index` as text: the name of an image is known only after reading its record."""
        return str(index)

    def num_boxes(self, index: int) -> int:
        """Return the number of boxes of image `index`, including crowds and tiny boxes.

        TFDS has no index of boxes, so the whole record is read. For all images of COCO's train2017,
        this takes half a minute and reads all bytes.
        """
        return len(self._data[index]["objects"]["label"])

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (0, 0), which means unknown: TFDS stores the size only in the image itself."""
        return 0, 0

    def ground_truth(self) -> dict[str, Any]:
        """Return the content of `annotations`, or, if it is None, the split in COCO format."""
        if self._annotations is not None:
            return read_ground_truth(self._annotations)
        return coco_ground_truth((self[i] for i in range(len(self))), self.categories)


def import_tfds() -> ModuleType:
    """Import the package `tensorflow_datasets`, an optional dependency.

    Raises:
      UserError: if it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Importing it warns about deprecations in its dependencies.
            warnings.simplefilter("ignore", DeprecationWarning)
            import array_record  # noqa: F401
            import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"config.data.format=tfds: needs {error.name}; pip install 'nanodet_jax[tfds]'"
        ) from error
    return tensorflow_datasets


def _official_categories(
    categories: tuple[Category, ...], path: Path, folder: Path
) -> tuple[Category, ...]:
    official = read_categories(read_coco(path), path)
    if len(official) != len(categories):
        counts = f"{len(official)} categories, but {folder} has {len(categories)}"
        raise UserError(f"{path}: has {counts}; use the json file of the same dataset")
    for own, other in zip(categories, official):
        if own.name.replace("_", " ") != other.name.replace("_", " "):
            names = f"category {other.id} is {other.name!r}, but {own.name!r} in {folder}"
            raise UserError(f"{path}: {names}; use the json file of the same dataset")
    return official
