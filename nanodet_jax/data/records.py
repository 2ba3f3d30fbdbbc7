"""What a data source yields: one `Record` per image, decoded only when its pixels are asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

import cv2
import numpy as np

from nanodet_jax.data.faults import Fault, Kind
from nanodet_jax.data.image_files import imdecode, is_truncated, read_bytes, stored_size
from nanodet_jax.terminal import printable

MAX_MEGAPIXELS = 50.0  # unless config.data.max_megapixels says otherwise


class Category(NamedTuple):
    """A class; its label is its place in `Source.categories`, its id is what the data calls it."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Record:
    """An image and its boxes, as annotated.

    Letters: n boxes. `image` is a file, encoded bytes, or uint8 BGR pixels [height, width, 3].
    `name` is the file name as a user would recognise it; `image_id` is what evaluation matches by.
    `width` and `height` are pixels, 0 where the data does not say.
    """

    image_id: int
    name: str
    image: Path | bytes | np.ndarray
    width: int
    height: int
    boxes: np.ndarray  # [n, 4] float32 xyxy, pixels of the original image
    labels: np.ndarray  # [n] int32, 0 .. C-1; without meaning where `ignore`
    ignore: np.ndarray  # [n] bool: a crowd, neither object nor background
    areas: np.ndarray  # [n] float32, square pixels: of the object's outline if known, else its box


class Source(Protocol):
    """Annotated images in a fixed order; reading one is cheap and touches no pixel if possible."""

    categories: tuple[Category, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def num_boxes(self, index: int) -> int:
        """How many boxes `self[index]` has, crowds included; at most, where counting is dear."""
        ...

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index`; 0 where only reading it would tell."""
        ...

    def ground_truth(self) -> dict[str, Any]:
        """Images, annotations and categories as a COCO file has them: evaluation's judge."""
        ...


def is_name(value: Any) -> TypeGuard[str]:
    """Whether a value is a text of 1 to 200 characters, all of which can be printed."""
    return isinstance(value, str) and value != "" and printable(value) == value


def make_record(
    image_id: int,
    name: str,
    image: Path | bytes | np.ndarray,
    size: tuple[int, int],
    boxes: Sequence[Any] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    ignore: Sequence[bool] | np.ndarray,
    areas: Sequence[float] | np.ndarray,
) -> Record:
    """A `Record` from lists or arrays; `size` is (height, width), `boxes` n rows of xyxy."""
    return Record(
        image_id=image_id,
        name=name,
        image=image,
        width=size[1],
        height=size[0],
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),  # [0, 4] where there is none
        labels=np.asarray(labels, np.int32),
        ignore=np.asarray(ignore, bool),
        areas=np.asarray(areas, np.float32),
    )


def decode(record: Record, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Pixels of a record, uint8 BGR [height, width, 3], turned upright as EXIF says.

    How many there are is read from the file's header, and memory taken for no more than
    `max_megapixels`.

    Raises:
      Fault: naming the file, if it is missing, truncated, no image or too large, or if its size is
        not the annotated one: boxes would then lie beside their objects.
    """
    if isinstance(record.image, np.ndarray):
        return record.image
    where, data = _read(record, max_megapixels * 1e6)
    if is_truncated(data):
        raise _unreadable(where, "image is truncated (its end is missing); copy it again")
    size = stored_size(data)
    if size is not None and size[0] * size[1] > max_megapixels * 1e6:
        raise _unreadable(
            where,
            f"is {size[1]}x{size[0]}, {size[0] * size[1] / 1e6:.1f} megapixels; reduce it, or "
            f"allow more than --config.data.max_megapixels={max_megapixels:g} (predict: "
            "--max-megapixels)",
        )
    pixels = imdecode(data, cv2.IMREAD_COLOR) if size is not None else None
    if pixels is None:
        raise _unreadable(where, "no image that OpenCV can read; replace it or remove it")
    height, width = pixels.shape[:2]
    if (record.width and record.width != width) or (record.height and record.height != height):
        reason = "correct the annotation"
        unturned = imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if unturned is not None and unturned.shape[:2] == (record.height, record.width):
            reason = (
                "its EXIF orientation swaps the sides; save the image upright without EXIF, "
                "or annotate it as it is shown"
            )
        annotated = f"{record.width}x{record.height}"
        found = f"is {width}x{height} but annotated as {annotated}: {reason}"
        raise Fault(Kind.SIZE, f"{where}: {found}")
    return pixels


def coco_ground_truth(
    records: Iterable[Record], categories: tuple[Category, ...]
) -> dict[str, list[dict[str, Any]]]:
    """Records as a COCO file has them: boxes xywh, annotations numbered from 1.

    Numbering starts at 1 because pycocotools takes annotation 0 for "matched nothing".
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
    if isinstance(record.image, bytes):
        return f"{record.name} (image {record.image_id})", record.image
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
    return Fault(Kind.UNREADABLE, f"{where}: {reason}")
