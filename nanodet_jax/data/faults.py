"""Faults in a dataset, and how readers report them.

Readers pass each fault to a callback. The default, `raise_fault`, raises the first one that is not
tolerated, so that training never starts on faulty data. `nanodet-jax doctor` collects them all.
"""

from collections.abc import Callable
from enum import StrEnum

from nanodet_jax.errors import UserError


class FaultKind(StrEnum):
    """Kind of a fault. The values are headings of the doctor's report."""

    CONFIG = "config values that do not fit the data"
    FILE = "unusable annotation files"
    NO_VALIDATION = "no validation images"
    PATH = "paths outside the dataset"
    MISSING = "missing images"
    UNREADABLE = "unreadable images"
    SIZE = "images whose size differs from the annotated one"
    IDS = "missing, invalid, unknown or repeated ids"
    CLASSES = "unknown classes"
    NUMBERS = "invalid numbers in boxes and fields"
    INVERTED = "inverted boxes"
    OUTSIDE = "boxes outside their image"
    NOT_FRACTIONS = "coordinates that are not fractions of the image"
    EMPTY = "boxes smaller than one pixel"
    DUPLICATES = "duplicate boxes"
    DERIVED = "boxes derived from polygons or masks, because bbox is missing"
    SUPER_CATEGORY = "super-categories without boxes, left out of the classes"
    RENAMED = "files found under a name that differs from the annotated one"


class Fault(UserError):
    """Error in a dataset entry. The message names the file and the entry.

    A `tolerated` fault does not stop a run: the entry is skipped, corrected by a fixed rule, or
    used as it is.
    """

    def __init__(self, kind: FaultKind, message: str, *, tolerated: bool = False) -> None:
        super().__init__(message)
        self.kind, self.tolerated = kind, tolerated


# Advice for datasets without validation images, used in errors about a missing split.
NO_VALIDATION = (
    "split off some of the training images with --config.data.val_fraction=0.1, or train without "
    "validation with --config.data.val=none"
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
    """Ignore the fault."""


class FaultCounter:
    """An `OnFault` that counts tolerated faults, each once, and raises all other faults."""

    def __init__(self) -> None:
        self._messages: dict[FaultKind, dict[str, None]] = {}  # in order of occurrence

    def __call__(self, fault: Fault) -> None:
        """Count the fault.

        Raises:
          Fault: `fault` itself, unless it is tolerated.
        """
        raise_fault(fault)
        # Some files are read twice, so a fault may be reported twice.
        self._messages.setdefault(fault.kind, {})[str(fault)] = None

    def notes(self, split: str) -> list[str]:
        """Return a line for each kind of fault, with the number of faults and the first one."""
        return [
            f"note: {kind} in {split}: {len(messages)}; the first: {next(iter(messages))}"
            for kind, messages in self._messages.items()
        ]
