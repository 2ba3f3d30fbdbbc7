"""Writes a COCO data set as a TFDS one with the features of `coco/2017`, without TensorFlow.

The files are bigger than the images by the boxes only: a JPEG is stored byte for byte.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nanodet_jax.data.records import decode
from nanodet_jax.data.sources.coco import CocoSource
from nanodet_jax.data.sources.tfds import import_tfds
from nanodet_jax.errors import UserError

VERSION = "1.0.0"
JPEG_START = b"\xff\xd8"


def prepare(
    train_images: Path,
    train_annotations: Path,
    val_images: Path,
    val_annotations: Path,
    out: Path,
    name: str,
) -> Path:
    """Write splits `train` and `validation` to `out/name/1.0.0`, and return that folder.

    `TfdsSource(f"{name}:1.0.0", out, "train", None)` reads them. Boxes are clipped to their
    image, and what training skips (boxes below one pixel) is left out. Every image is decoded
    once, so that a broken one is found now.

    Raises:
      UserError: on faults of the COCO files, categories that differ between the splits, an image
        that is broken or no JPEG, a name that TFDS refuses, or a data set that exists already.
    """
    tfds = import_tfds()
    if not (name.isidentifier() and name.isascii() and name == name.lower()):
        raise UserError(f"name {name!r}: use lower-case letters, digits and _, a letter first")
    folder = out / name / VERSION
    if folder.exists():
        raise UserError(f"{folder}: exists already; delete it or choose another name")
    train = CocoSource(train_images, train_annotations)
    validation = CocoSource(val_images, val_annotations)
    if train.categories != validation.categories:
        raise UserError(f"{val_annotations}: categories differ from those of {train_annotations}")
    names = [category.name for category in train.categories]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f"{train_annotations}: two categories are named {repeated[0]!r}")
    builder = _builder_class(tfds, name, names, {"train": train, "validation": validation})
    builder(data_dir=out, file_format="array_record").download_and_prepare()
    return folder


def _builder_class(
    tfds: Any, dataset_name: str, names: list[str], splits: dict[str, CocoSource]
) -> Any:
    """A TFDS builder; a class inside a function, since its base class is an optional import."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = dataset_name
        VERSION = tfds.core.Version(VERSION)
        code_path = None  # TFDS would look for checksums of downloads beside it; there are none

        def _info(self) -> Any:
            objects = {
                "area": np.int64,
                "bbox": tfds.features.BBoxFeature(),
                "id": np.int64,
                "is_crowd": np.bool_,
                "label": tfds.features.ClassLabel(names=names),
            }
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "objects": tfds.features.Sequence(objects),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="A COCO data set, written by nanodet_jax.",
                features=tfds.features.FeaturesDict(features),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(source) for name, source in splits.items()}

        def _generate_examples(self, source: CocoSource) -> Iterator[tuple[int, dict[str, Any]]]:
            for index in range(len(source)):
                example = _example(tfds, source, index)
                yield example["image/id"], example

    return Builder


def _example(tfds: Any, source: CocoSource, index: int) -> dict[str, Any]:
    record = source[index]
    assert isinstance(record.image, Path)
    height, width = decode(record).shape[:2]
    with record.image.open("rb") as file:
        if file.read(len(JPEG_START)) != JPEG_START:
            raise UserError(f"{record.image}: no JPEG; TFDS stores the images of coco/2017 so")
    sides = np.asarray([width, height, width, height], np.float64)
    shares = np.clip(record.boxes / sides, 0.0, 1.0).tolist()
    objects = [
        {
            "area": int(area),
            "bbox": tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2),
            "id": int(id),
            "is_crowd": bool(ignore),
            "label": int(label),
        }
        for id, (x1, y1, x2, y2), label, ignore, area in zip(
            source.annotation_ids(index), shares, record.labels, record.ignore, record.areas
        )
    ]
    return {
        "image": str(record.image),
        "image/filename": record.name,
        "image/id": record.image_id,
        "objects": objects,
    }
