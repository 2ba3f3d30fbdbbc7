"""Faults of a dataset, and how a reader reports them.

Readers pass each fault to a callback. The default, `raise_fault`, raises the first one that is not
tolerated, so that training never starts on wrong data. `nanodet-jax doctor` collects them all.
"""

from collections.abc import Callable
from enum import StrEnum

from nanodet_jax.errors import UserError


class FaultKind(StrEnum):
    """Kind of a fault. The values are headings of the doctor's report."""

    CONFIG = "values of the config that do not fit the data"
    FILE = "unusable annotation files"
    PATH = "paths outside the dataset"
    MISSING = "missing images"
    UNREADABLE = "unreadable images"
    SIZE = "images whose size differs from the annotated one"
    IDS = "missing, invalid, unknown or repeated ids"
    CLASSES = "unknown classes"
    NUMBERS = "invalid numbers in boxes and fields"
    INVERTED = "inverted boxes"
    OUTSIDE = "boxes outside their image"
    EMPTY = "boxes smaller than one pixel"
    DUPLICATES = "duplicate boxes"
    DERIVED = "boxes derived from polygons or masks, because bbox is missing"
    SUPER_CATEGORY = "super-categories without boxes, left out of the classes"
    RENAMED = "files found under another name than the annotated one"


class Fault(UserError):
    """Error in an entry of a dataset. The message names the file and the entry.

    A `tolerated` fault does not stop a run: the entry is skipped, or corrected by a fixed rule.
    """

    def __init__(self, kind: FaultKind, message: str, *, tolerated: bool = False) -> None:
        super().__init__(message)
        self.kind, self.tolerated = kind, tolerated


# How to train on data without validation images; ends the errors about a missing split.
NO_VALIDATION = (
    "split some off the training images with --config.data.val_fraction=0.1, or train without "
    "with --config.data.val=none"
)

OnFault = Callable[[Fault], None]


def raise_fault(fault: Fault) -> None:
    """Raise the fault unless it is tolerated.

    Raises:
      Fault: `fault` itself.
    """
    if not fault.tolerated:
        raise fault


def ignore_fault(fault: Fault) -> None:
    """Skip the fault."""


class FaultCounter:
    """Counts tolerated faults, each once, and raises the others. An `OnFault`."""

    def __init__(self) -> None:
        self._messages: dict[FaultKind, dict[str, None]] = {}  # in the order of their report

    def __call__(self, fault: Fault) -> None:
        """Count the fault.

        Raises:
          Fault: `fault` itself, unless it is tolerated.
        """
        raise_fault(fault)
        # Some files are read twice.
        self._messages.setdefault(fault.kind, {})[str(fault)] = None

    def notes(self, split: str) -> list[str]:
        """Return a line for each kind of fault, with their number and the first."""
        return [
            f"note: {kind} in {split}: {len(messages)}; the first: {next(iter(messages))}"
            for kind, messages in self._messages.items()
        ]
