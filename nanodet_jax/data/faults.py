"""What can be wrong with an entry of a data set, and what a reader does when it meets that.

Readers tell each fault to a function that they are given. The default, `refuse`, stops at the
first, so that training never begins on data that are not what they seem; `nanodet-jax doctor`
gives one that collects them.
"""

from collections.abc import Callable
from enum import StrEnum

from nanodet_jax.errors import UserError


class Kind(StrEnum):
    """Kinds of faults, in words for a heading."""

    FILE = "annotation files that cannot be used"
    PATH = "paths that lead out of the data"
    MISSING = "missing images"
    UNREADABLE = "unreadable images"
    SIZE = "images of another size than annotated"
    IDS = "ids that are missing, no numbers, unknown or used twice"
    CLASSES = "unknown classes"
    NUMBERS = "boxes and fields that are no numbers"
    INVERTED = "inverted boxes"
    OUTSIDE = "boxes outside their image"
    EMPTY = "boxes below one pixel"
    DUPLICATES = "boxes that occur twice"


class Fault(UserError):
    """An entry that cannot be used, or that is `tolerated`: left out or mended by rule.

    The message names the file and the entry.
    """

    def __init__(self, kind: Kind, message: str, *, tolerated: bool = False) -> None:
        super().__init__(message)
        self.kind, self.tolerated = kind, tolerated


OnFault = Callable[[Fault], None]


def refuse(fault: Fault) -> None:
    """Raise what is not tolerated."""
    if not fault.tolerated:
        raise fault
