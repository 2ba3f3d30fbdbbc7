"""Faults of a dataset, and how a reader reports them.

Readers pass each fault to a callback. The default, `raise_fault`, raises the first one that is not
tolerated, so that training never starts on wrong data. `nanodet-jax doctor` collects them all.
"""

from collections.abc import Callable
from enum import StrEnum

from nanodet_jax.errors import UserError


class FaultKind(StrEnum):
    """Kind of a fault. The values are headings of the doctor's report."""

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


class Fault(UserError):
    """Error in an entry of a dataset. The message names the file and the entry.

    A `tolerated` fault does not stop a run: the entry is skipped, or corrected by a fixed rule.
    """

    def __init__(self, kind: FaultKind, message: str, *, tolerated: bool = False) -> None:
        super().__init__(message)
        self.kind, self.tolerated = kind, tolerated


OnFault = Callable[[Fault], None]


def raise_fault(fault: Fault) -> None:
    """Raise the fault unless it is tolerated.

    Raises:
      Fault: `fault` itself.
    """
    if not fault.tolerated:
        raise fault
