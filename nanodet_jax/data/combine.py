"""Combine several data sources into one."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from nanodet_jax.data.class_map import class_names, rename_classes
from nanodet_jax.data.records import Category, Record, Source


class CombinedSource:
    """The images of several sources, one source after another.

    The classes are the union of the class names, in order of first occurrence. Class and image ids
    start at 1.

    Args:
      sources: at least one.
      labels: one label for each source. The images of a source are named LABEL/NAME.
    """

    def __init__(self, sources: Sequence[Source], labels: Sequence[str]) -> None:
        names = list(dict.fromkeys(name for source in sources for name in class_names(source)))
        self.categories = tuple(Category(id, name) for id, name in enumerate(names, start=1))
        self._sources = [rename_classes(source, names) for source in sources]
        self._labels = labels
        self._starts = [0, *accumulate(map(len, sources))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        which, inner = self._find(index)
        record = self._sources[which][inner]
        return replace(record, image_id=index + 1, name=self.name(index))

    def name(self, index: int) -> str:
        """Return the name of image `index`, with the label of its source."""
        which, inner = self._find(index)
        return f"{self._labels[which]}/{self._sources[which].name(inner)}"

    def num_boxes(self, index: int) -> int:
        """Return the number of boxes of image `index`, or an upper bound."""
        which, inner = self._find(index)
        return self._sources[which].num_boxes(inner)

    def image_size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of image `index`; 0 where it is unknown."""
        which, inner = self._find(index)
        return self._sources[which].image_size(inner)

    def ground_truth(self) -> dict[str, Any]:
        """Return the ground truth of all sources, with the ids of the combined source."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for source, label, start in zip(self._sources, self._labels, self._starts):
            content = source.ground_truth()
            image_ids = {source[i].image_id: start + i + 1 for i in range(len(source))}
            category_ids = {
                own.id: common.id for own, common in zip(source.categories, self.categories)
            }
            for image in content["images"]:
                if image["id"] in image_ids:
                    name = f"{label}/{image['file_name']}"
                    images.append({**image, "id": image_ids[image["id"]], "file_name": name})
            for item in content["annotations"]:
                if item["image_id"] in image_ids:
                    ids = {
                        "id": len(annotations) + 1,
                        "image_id": image_ids[item["image_id"]],
                        "category_id": category_ids[item["category_id"]],
                    }
                    annotations.append({**item, **ids})
        categories = [category._asdict() for category in self.categories]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _find(self, index: int) -> tuple[int, int]:
        """Return the index of the source that has image `index`, and the image's index in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._starts, index) - 1
        return which, index - self._starts[which]
