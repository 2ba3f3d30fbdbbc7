"""Records of a data source, one per image. Images are decoded only when pixels are requested."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

import cv2
import numpy as np
from numpy.typing import ArrayLike

from nanodet_jax.data.faults import Fault, FaultKind
from nanodet_jax.data.image_files import imdecode, is_truncated, read_bytes, stored_size
from nanodet_jax.terminal import printable

MAX_MEGAPIXELS = 50.0  # limit for callers that have no config


class Category(NamedTuple):
    """Object class with its id in the dataset. Its label is its index in `Source.categories`."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Record:
    """Image and its n boxes, as annotated.

    `image` is a file, encoded bytes, or uint8 BGR pixels [height, width, 3]. `name` identifies
    the image to the user and is usually its file name. `image_id` identifies the image in the
    evaluation. `width` and `height` are in pixels, or 0 if unknown.
    """

    image_id: int
    name: str
    image: Path | bytes | np.ndarray
    width: int
    height: int
    boxes: np.ndarray  # [n, 4] float32 xyxy, pixels of the original image
    labels: np.ndarray  # [n] int32, 0 .. C-1; meaningless where `ignore` is True
    ignore: np.ndarray  # [n] bool: an ignore region, neither object nor background
    areas: np.ndarray  # [n] float32, square pixels: area of the mask if known, otherwise of the box


class Source(Protocol):
    """Annotated images in a fixed order. Reading a record does not decode its image."""

    categories: tuple[Category, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str:
        """Return the name of `self[index]`, or `index` as text if finding the name is expensive."""
        ...

    def num_boxes(self, index: int) -> int:
        """Return the number of boxes of `self[index]`, ignore regions included.

        The number may be an upper bound if counting is expensive.
        """
        ...

    def image_size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of image `index`; 0 if unknown until the image is read."""
        ...

    def ground_truth(self) -> dict[str, Any]:
        """Return the images, annotations and categories in COCO format, for the evaluation."""
        ...


def is_name(value: Any) -> TypeGuard[str]:
    """Return whether a value is a string of 1 to 200 printable characters."""
    return isinstance(value, str) and value != "" and printable(value) == value


def make_record(
    image_id: int,
    name: str,
    image: Path | bytes | np.ndarray,
    size: tuple[int, int],
    boxes: ArrayLike,
    labels: ArrayLike,
    ignore: ArrayLike,
    areas: ArrayLike,
) -> Record:
    """Return a `Record` whose arrays have the dtypes of its fields.

    Args:
      image_id, name, image: as in `Record`.
      size: (height, width).
      boxes: n boxes, xyxy.
      labels, ignore, areas: n values each.
    """
    return Record(
        image_id=image_id,
        name=name,
        image=image,
        width=size[1],
        height=size[0],
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),  # [0, 4] if there are no boxes
        labels=np.asarray(labels, np.int32),
        ignore=np.asarray(ignore, bool),
        areas=np.asarray(areas, np.float32),
    )


def location_of(record: Record) -> str:
    """Return the name and id of an image, for messages."""
    return f"{record.name} (image {record.image_id})"


def decode(record: Record, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Return the pixels of a record, uint8 BGR [height, width, 3], rotated according to EXIF.

    The size is read from the file header first. An image larger than `max_megapixels` is not
    decoded.

    Raises:
      Fault: naming the file, if it is missing, truncated, not an image or too large, or if its size
        differs from the annotated one, which would misplace its boxes.
    """
    if isinstance(record.image, np.ndarray):
        return record.image
    where, data = _read(record, max_megapixels * 1e6)
    if is_truncated(data):
        raise _unreadable(where, "image is truncated; copy it again")
    size = stored_size(data)
    if size is not None and size[0] * size[1] > max_megapixels * 1e6:
        raise _unreadable(
            where,
            f"is {size[1]}x{size[0]}, {size[0] * size[1] / 1e6:.1f} megapixels; resize it, or "
            f"raise the limit of {max_megapixels:g} with --config.data.max_megapixels "
            "(predict: --max-megapixels)",
        )
    pixels = imdecode(data, cv2.IMREAD_COLOR) if size is not None else None
    if pixels is None:
        raise _unreadable(where, "not an image that OpenCV can read; replace or remove it")
    height, width = pixels.shape[:2]
    if (record.width and record.width != width) or (record.height and record.height != height):
        reason = "correct the annotation"
        unrotated = imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if unrotated is not None and unrotated.shape[:2] == (record.height, record.width):
            reason = (
                "its EXIF orientation swaps width and height; save the image upright without EXIF, "
                "or annotate it as displayed"
            )
        annotated = f"{record.width}x{record.height}"
        found = f"is {width}x{height} but annotated as {annotated}: {reason}"
        raise Fault(FaultKind.SIZE, f"{where}: {found}")
    return pixels


def coco_ground_truth(
    records: Iterable[Record], categories: tuple[Category, ...]
) -> dict[str, list[dict[str, Any]]]:
    """Return records in COCO format: boxes xywh, annotations numbered from 1.

    Numbering starts at 1 because pycocotools uses annotation id 0 for "not matched".
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        size = {"width": record.width, "height": record.height}
        images.append({"id": record.image_id, "file_name": record.name, **size})
        for box, label, ignore, area in zip(
            record.boxes.tolist(), record.labels, record.ignore, record.areas
        ):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": categories[label].id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": int(ignore),
                }
            )
    listed = [category._asdict() for category in categories]
    return {"images": images, "annotations": annotations, "categories": listed}


def _read(record: Record, max_pixels: float) -> tuple[str, bytes]:
    """Return the image's description for messages, and its encoded bytes."""
    if isinstance(record.image, bytes):
        return location_of(record), record.image
    assert isinstance(record.image, Path)
    where = f"{record.image} (image {record.image_id})"
    try:
        return where, read_bytes(record.image, max_pixels)
    except FileNotFoundError as error:
        raise _unreadable(where, "file is missing") from error
    except OSError as error:
        raise _unreadable(where, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _unreadable(where, f"cannot be read: {error}") from error


def _unreadable(where: str, reason: str) -> Fault:
    return Fault(FaultKind.UNREADABLE, f"{where}: {reason}")
