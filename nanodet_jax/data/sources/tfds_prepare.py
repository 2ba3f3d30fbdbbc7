"""Convert a COCO dataset to a TFDS dataset with the features of `coco/2017`, without TensorFlow.

JPEG files are stored byte for byte, so only the annotations make the result larger than the images.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
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
    """Write the splits `train` and `validation` to `out/name/1.0.0`, and return that folder.

    `TfdsSource(f"{name}:1.0.0", out, "train", None)` opens the training split. Boxes are clipped to
    their image, and boxes smaller than one pixel are omitted, as in training. Every image is
    decoded once, so that broken ones are found here.

    Raises:
      UserError: for faults in the COCO files, categories that differ between the splits, an image
        that is broken or not a JPEG, a name that TFDS rejects, or a dataset that already exists.
    """
    tfds = import_tfds()
    if not (name.isidentifier() and name.isascii() and name == name.lower()):
        rule = "use lower-case letters, digits and _, starting with a letter"
        raise UserError(f"--name={name}: {rule}")
    folder = out / name / VERSION
    if folder.exists():
        raise UserError(f"{folder}: already exists; delete it or choose another name")
    train = CocoSource(train_images, train_annotations)
    validation = CocoSource(val_images, val_annotations)
    if train.categories != validation.categories:
        found = f"categories differ from {train_annotations}"
        raise UserError(f"{val_annotations}: {found}; list the same categories in both")
    names = [category.name for category in train.categories]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        found = f"two categories are named {repeated[0]!r}"
        raise UserError(f"{train_annotations}: {found}; make names unique")
    builder = _builder_class(tfds, name, names, {"train": train, "validation": validation})
    builder(data_dir=out, file_format="array_record").download_and_prepare()
    return folder


def _builder_class(
    tfds: Any, dataset_name: str, names: list[str], splits: dict[str, CocoSource]
) -> type[Any]:
    """Return a TFDS builder class. It is defined in a function because TFDS is optional."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = dataset_name
        VERSION = tfds.core.Version(VERSION)
        code_path = None  # otherwise TFDS looks for download checksums next to this file

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
                description="A COCO dataset, written by nanodet_jax.",
                features=tfds.features.FeaturesDict(features),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(source) for name, source in splits.items()}

        def _generate_examples(self, source: CocoSource) -> Iterator[tuple[int, dict[str, Any]]]:
            for index in range(len(source)):
                example = _example(tfds, source, index)
                yield example["image/id"], example

    return Builder


def _example(tfds: ModuleType, source: CocoSource, index: int) -> dict[str, Any]:
    record = source[index]
    assert isinstance(record.image, Path)
    height, width = decode(record).shape[:2]
    with record.image.open("rb") as file:
        if file.read(len(JPEG_START)) != JPEG_START:
            raise UserError(f"{record.image}: is not a JPEG file; convert it to JPEG")
    sides = np.asarray([width, height, width, height], np.float64)
    fractions = np.clip(record.boxes / sides, 0.0, 1.0).tolist()
    objects = [
        {
            "area": int(area),
            "bbox": tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2),
            "id": int(id),
            "is_crowd": bool(ignore),
            "label": int(label),
        }
        for id, (x1, y1, x2, y2), label, ignore, area in zip(
            source.annotation_ids(index), fractions, record.labels, record.ignore, record.areas
        )
    ]
    return {
        "image": str(record.image),
        "image/filename": record.name,
        "image/id": record.image_id,
        "objects": objects,
    }
