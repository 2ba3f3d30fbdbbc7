"""Random order of training images in which most batches have images of one group only."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

EPOCHS = 1_000_000  # more than any run has


class GroupedOrder(Sequence[int]):
    """Indices of images for many epochs, in an order in which few batches mix groups.

    Each epoch is shuffled differently. The shuffled images are collected by group, and whenever a
    group fills a batch, this batch comes next. The images left over at the end of an epoch form
    mixed batches, and those that do not fill a batch are left out. An epoch therefore has as many
    batches as it would have without groups.

    Args:
      groups: group of each image, such as the bucket (height, width) that it fits into.
      batch_size: number of images in a batch, over all devices.
      seed: seed of the random order.
    """

    def __init__(self, groups: Sequence[tuple[int, int]], batch_size: int, seed: int) -> None:
        self._used = len(groups) // batch_size * batch_size  # in an epoch

        @lru_cache(2)  # near the end of an epoch, threads read from this epoch and the next
        def epoch_order(epoch: int) -> list[int]:
            waiting: dict[tuple[int, int], list[int]] = defaultdict(list)
            ordered: list[int] = []
            for index in np.random.default_rng([seed, epoch]).permutation(len(groups)).tolist():
                group = waiting[groups[index]]
                group.append(index)
                if len(group) == batch_size:
                    ordered += group
                    group.clear()
            left = [index for group in sorted(waiting) for index in waiting[group]]
            return (ordered + left)[: self._used]

        self._epoch_order = epoch_order

    def __len__(self) -> int:
        return EPOCHS * self._used

    def __getitem__(self, position: int) -> int:  # type: ignore[override]  # no slices
        epoch, place = divmod(position, self._used)
        return self._epoch_order(epoch)[place]
