"""Base class of sources that keep the annotations of all images in memory."""

from collections.abc import Sequence
from typing import Any

from nanodet_jax.data.records import Category, Record, coco_ground_truth


class InMemorySource:
    """Records of a split in a fixed order. Annotations are read when the source is opened.

    A subclass reads the annotations of its format, and passes the categories and the records to
    `__init__`. Pixels stay on disk until a record is decoded.
    """

    def __init__(self, categories: tuple[Category, ...], records: Sequence[Record]) -> None:
        self.categories = categories
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def name(self, index: int) -> str:
        """Return the name of image `index`."""
        return self._records[index].name

    def num_boxes(self, index: int) -> int:
        """Return the number of boxes of image `index`, ignore regions included."""
        return len(self._records[index].boxes)

    def image_size(self, index: int) -> tuple[int, int]:
        """Return the annotated (height, width); 0 where the annotation has no size."""
        return self._records[index].height, self._records[index].width

    def ground_truth(self) -> dict[str, Any]:
        """Return the split in COCO format."""
        return coco_ground_truth(self._records, self.categories)
