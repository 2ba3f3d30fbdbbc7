"""Select, order, merge or ignore the classes of a data source by name."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nanodet_jax.config import Data
from nanodet_jax.data.records import Category, Record, Source
from nanodet_jax.errors import UserError
from nanodet_jax.terminal import join_first

LEFT_OUT, IGNORED = -1, -2  # instead of a label: drop the box, or make it an ignore region


class RelabeledSource:
    """A source with its classes replaced. Images, their order and their ids do not change.

    Args:
      source: the source to relabel.
      names: the classes in label order. A class gets the id of the first category mapped to it,
        or an unused id if there is none.
      targets: label, `LEFT_OUT` or `IGNORED` for each category of `source`.
    """

    def __init__(self, source: Source, names: Sequence[str], targets: Sequence[int]) -> None:
        self._source, self._targets = source, np.asarray(targets, np.int32)
        ids: dict[int, int] = {}
        for category, target in zip(source.categories, targets):
            ids.setdefault(target, category.id)
        unused = max([0, *(category.id for category in source.categories)]) + 1
        self.categories = tuple(
            Category(ids.get(label, unused + label), name) for label, name in enumerate(names)
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return relabel(self._source[index], self._targets)

    def name(self, index: int) -> str:
        """Return the name of image `index`."""
        return self._source.name(index)

    def num_boxes(self, index: int) -> int:
        """Return the number of boxes of image `index`, ignore regions included."""
        return len(self[index].boxes)

    def image_size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of image `index`; 0 where it is unknown."""
        return self._source.image_size(index)

    def ground_truth(self) -> dict[str, Any]:
        """Return the ground truth of the source with these classes.

        COCO's metrics apply an ignore region to its own class only. A region of an ignored class
        is therefore repeated for every class.
        """
        content = self._source.ground_truth()
        targets = dict(zip((c.id for c in self._source.categories), self._targets.tolist()))
        annotations = []
        unused = max([0, *(item.get("id", 0) for item in content["annotations"])]) + 1
        for item in content["annotations"]:
            target = targets.get(item["category_id"], LEFT_OUT)
            if target >= 0:
                annotations.append({**item, "category_id": self.categories[target].id})
            elif target == IGNORED:
                for category in self.categories:
                    region = {"id": unused, "category_id": category.id, "iscrowd": 1}
                    annotations.append({**item, **region})
                    unused += 1
        listed = [category._asdict() for category in self.categories]
        return {**content, "annotations": annotations, "categories": listed}


def relabel(record: Record, targets: np.ndarray) -> Record:
    """Return a copy of a record with its labels replaced.

    Args:
      record: not changed.
      targets: label, `LEFT_OUT` or `IGNORED` for each label of the record: [C] int32.
    """
    labels = targets[record.labels]
    kept = labels != LEFT_OUT
    labels = labels[kept]
    return replace(
        record,
        boxes=record.boxes[kept],
        labels=np.maximum(labels, 0),
        ignore=record.ignore[kept] | (labels == IGNORED),
        areas=record.areas[kept],
    )


def select_classes(
    source: Source, data: Data, exclude_empty: bool, other_split: Callable[[], Collection[str]]
) -> Source:
    """Apply `classes`, `merge` and `ignore` of `config.data` to a source.

    Args:
      source: returned unchanged if these fields are empty and `exclude_empty` is False.
      data: the config section with these fields.
      exclude_empty: also leave out classes without boxes.
      other_split: returns the class names of the other split; called if this split lacks a name.

    Raises:
      UserError: if a name occurs in neither split (the message suggests a similar one), or
        if no class is left.
    """
    if not (data.classes or data.merge or data.ignore or exclude_empty):
        return source
    names = class_names(source)
    merged = dict(entry.split(":", 1) for entry in data.merge)
    _check_names("merge", merged, names, other_split)
    united = [merged.get(name, name) for name in names]

    def united_other_split() -> Collection[str]:
        return {merged.get(name, name) for name in other_split()}

    _check_names("ignore", data.ignore, united, united_other_split)
    _check_names("classes", data.classes, united, united_other_split)
    chosen = list(data.classes or dict.fromkeys(united))
    if exclude_empty:
        counts = class_counts(source)
        filled = {name for name, count in zip(united, counts.tolist()) if count}
        chosen = [name for name in chosen if name in filled]
    chosen = [name for name in chosen if name not in data.ignore]
    if not chosen:
        raise UserError(f"config.data: excludes all of the classes {join_first(names)}")
    renamed = {name: merged.get(name, name) for name in names}
    return rename_classes(source, chosen, renamed, data.ignore)


def rename_classes(
    source: Source,
    names: Sequence[str],
    renamed: Mapping[str, str] | None = None,
    ignored: Collection[str] = (),
) -> Source:
    """Return a source with the classes `names`, in this order.

    Args:
      source: returned unchanged if it already has these classes.
      names: class names.
      renamed: new names of classes, by old name. Other classes keep their names.
      ignored: new names of the classes whose boxes become ignore regions. Boxes of any other class
        that is not in `names` are left out.
    """
    renamed = renamed or {}
    labels = {name: label for label, name in enumerate(names)}
    targets = []
    for name in class_names(source):
        new = renamed.get(name, name)
        targets.append(IGNORED if new in ignored else labels.get(new, LEFT_OUT))
    if targets == list(range(len(names))) and class_names(source) == list(names):
        return source
    return RelabeledSource(source, names, targets)


def match_classes(
    train: Source, val: Source, *, exclude_empty: bool = False
) -> tuple[Source, Source]:
    """Give both splits the training classes, followed by the classes that only validation has.

    Args:
      train: the training data.
      val: the validation data.
      exclude_empty: do not add classes that only validation has.

    Raises:
      UserError: if the splits have no class in common.
    """
    names, others = class_names(train), class_names(val)
    if not set(names) & set(others):
        raise UserError(
            "training and validation data have no class in common: training has "
            f"{join_first(names)}, but validation has {join_first(others)}; use data with the same "
            "classes, or merge classes with --config.data.merge=OLD:NEW"
        )
    if names != others:
        names = list(dict.fromkeys(names if exclude_empty else [*names, *others]))
    return rename_classes(train, names), rename_classes(val, names)


def class_names(source: Source) -> list[str]:
    """Return the names of the classes of a source in label order."""
    return [category.name for category in source.categories]


def class_counts(source: Source) -> np.ndarray:
    """Return the number of objects of each class, ignore regions excluded: [C] int."""
    counts = np.zeros(len(source.categories), int)
    for index in range(len(source)):
        record = source[index]
        counts += np.bincount(record.labels[~record.ignore], minlength=len(counts))
    return counts


def _check_names(
    field: str,
    wanted: Sequence[str] | Mapping[str, str],
    known: Sequence[str],
    other_split: Callable[[], Collection[str]],
) -> None:
    missing = [name for name in wanted if name not in known]
    if missing:
        others = other_split()
        missing = [name for name in missing if name not in others]
    if missing:
        folded = {name.casefold(): name for name in known}
        similar = difflib.get_close_matches(missing[0].casefold(), folded, 1, cutoff=0.5)
        hint = f"; did you mean {folded[similar[0]]!r}?" if similar else ""
        raise UserError(
            f"config.data.{field}: {missing[0]!r} does not occur in the data, whose classes are "
            f"{join_first(known, 20)}{hint}"
        )
