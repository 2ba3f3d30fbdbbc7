"""How far two numbers are apart, and which of many comparisons is the worst."""

from typing import NamedTuple

import numpy as np


class Worst(NamedTuple):
    """The comparison of a fixture that comes nearest to failing, or fails the most."""

    what: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for nan


class Comparisons:
    """Collects errors against tolerances; the worst is the one that uses most of its own."""

    def __init__(self) -> None:
        self.rows: list[Worst] = []

    def add(self, what: str, error: float, tolerance: float) -> None:
        self.rows.append(Worst(what, float(error), tolerance))

    def equal(self, what: str, actual, expected) -> None:
        """Integers and flags: the number of places that differ must be zero."""
        actual, expected = np.asarray(actual), np.asarray(expected)
        same_shape = actual.shape == expected.shape
        self.add(what, np.sum(actual != expected) if same_shape else np.inf, 0)

    def absolute(self, what: str, actual, expected, tolerance: float) -> None:
        self._differences(what, actual, expected, tolerance, 1.0)

    def of_scale(self, what: str, actual, expected, tolerance: float) -> None:
        """Largest difference as a share of the largest expected magnitude."""
        scale = np.max(np.abs(expected), initial=0.0)
        self._differences(what, actual, expected, tolerance, scale or 1.0)

    def relative(self, what: str, actual, expected, tolerance: float, floor: float = 1e-12) -> None:
        """Each difference as a share of its own expected magnitude."""
        scale = np.maximum(np.abs(np.asarray(expected, np.float64)), floor)
        self._differences(what, actual, expected, tolerance, scale)

    def _differences(self, what, actual, expected, tolerance, scale) -> None:
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        if actual.shape != expected.shape:
            self.add(f"{what}: shape {actual.shape}", np.inf, tolerance)
            return
        errors = np.abs(actual - expected) / scale
        worst = np.nan if np.isnan(errors).any() else np.max(errors, initial=0.0)
        self.add(what, worst, tolerance)

    def worst(self) -> Worst:
        def used(row: Worst) -> float:
            if np.isnan(row.error):
                return np.inf
            return row.error / row.tolerance if row.tolerance else (np.inf if row.error else 0.0)

        return max(self.rows, key=used, default=Worst("nothing was compared", np.nan, 0))
