"""Comparison of numbers with tolerances, and the resolution of float32."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

JITTERED_RUNS = 24  # maximum; of 1,500 numbers hundreds need some, and one may need many


class Worst(NamedTuple):
    """Comparison of a fixture with the largest ratio of error to tolerance."""

    what: str
    error: float
    tolerance: float
    resolution: float = 0.0  # uncertainty of float32, if it was needed to pass

    @property
    def passed(self) -> bool:
        return self.error <= max(self.tolerance, self.resolution)  # False for nan


class Expected(NamedTuple):
    """Recorded number or array, and the tolerance of its comparison."""

    value: np.ndarray
    tolerance: float
    scale: np.ndarray | float  # differences are divided by this
    kind: str = ""  # numbers of one kind share a resolution

    def error(self, actual) -> float:
        actual, value = np.asarray(actual, np.float64), np.asarray(self.value, np.float64)
        if actual.shape != value.shape:
            return np.inf
        errors = np.abs(actual - value) / self.scale
        return float(np.nan if np.isnan(errors).any() else np.max(errors, initial=0.0))


def absolute(value, tolerance: float) -> Expected:
    """Compare absolute differences."""
    return Expected(np.asarray(value), tolerance, 1.0)


def of_scale(value, tolerance: float) -> Expected:
    """Compare differences relative to the largest expected magnitude."""
    return Expected(np.asarray(value), tolerance, np.max(np.abs(value), initial=0.0) or 1.0)


def relative(value, tolerance: float, floor: float = 1e-12) -> Expected:
    """Compare each difference relative to its own expected magnitude."""
    scale = np.maximum(np.abs(np.asarray(value, np.float64)), floor)
    return Expected(np.asarray(value), tolerance, scale)


class Comparisons:
    """Collection of errors and tolerances. The worst has the largest ratio of the two."""

    def __init__(self) -> None:
        self.rows: list[Worst] = []

    def add(self, what: str, error: float, tolerance: float) -> None:
        self.rows.append(Worst(what, float(error), tolerance))

    def equal(self, what: str, actual, expected) -> None:
        """Compare integers or flags: the number of differing elements must be zero."""
        actual, expected = np.asarray(actual), np.asarray(expected)
        same_shape = actual.shape == expected.shape
        self.add(what, np.sum(actual != expected) if same_shape else np.inf, 0)

    def near(self, what: str, actual, expected: Expected) -> None:
        self.add(what, expected.error(actual), expected.tolerance)

    def worst(self) -> Worst:
        def used(row: Worst) -> float:
            allowed = max(row.tolerance, row.resolution)
            if np.isnan(row.error):
                return np.inf
            return row.error / allowed if allowed else (np.inf if row.error else 0.0)

        return max(self.rows, key=used, default=Worst("nothing was compared", np.nan, 0))


def compare_recomputed(
    compute: Callable[[int | None], Mapping[str, np.ndarray]], expected: Mapping[str, Expected]
) -> Worst:
    """Return the worst comparison of a network's numbers with the recorded ones.

    A deep network in float32 does not determine every number to within its tolerance. An activation
    within rounding of its kink can have either slope, which changes a gradient norm upstream by
    1e-3. Each optimizer step amplifies this tenfold. The recorded numbers contain such jumps too,
    and no other order of summation reproduces them, not even float64. If an error exceeds its
    tolerance, the network is therefore run again with weights changed by at most their last bit.
    Twice the largest change of a number is its resolution in float32. Which of many gradient norms
    jumps is random, so numbers of one `kind` share the largest resolution.

    Args:
      compute: returns numbers by name: for None the actual ones, for a seed those of jittered
        weights.
      expected: recorded numbers by the same names.
    """
    actual = compute(None)
    rows = [Worst(what, e.error(actual[what]), e.tolerance) for what, e in expected.items()]
    if not all(row.passed for row in rows):
        strict, resolved = (
            rows,
            dict.fromkeys((e.kind or what for what, e in expected.items()), 0.0),
        )
        for seed in range(JITTERED_RUNS):
            run = compute(seed)
            for what, e in expected.items():
                around = e._replace(value=np.asarray(actual[what]))
                change = 2 * around.error(run[what])
                resolved[e.kind or what] = max(change, resolved[e.kind or what])
            rows = [
                row if row.passed else row._replace(resolution=resolved[e.kind or row.what])
                for row, e in zip(strict, expected.values())
            ]
            if all(row.passed for row in rows):  # more runs can only increase the resolution
                break
        if all(row.passed for row in rows):
            # Return the worst comparison among those that needed the resolution.
            return max(
                (r for r in rows if r.error > r.tolerance), key=lambda r: r.error / r.tolerance
            )
    compare = Comparisons()
    compare.rows = rows
    return compare.worst()


def jitter(variables, seed: int | None):
    """Return arrays changed by at most one unit in the last place, or unchanged for None."""
    import jax

    if seed is None:
        return variables
    random = np.random.RandomState(seed)

    def change(leaf):
        leaf = np.asarray(leaf, np.float32)
        towards = np.where(random.rand(*leaf.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        return np.where(random.rand(*leaf.shape) < 0.5, leaf, np.nextafter(leaf, towards))

    return jax.tree.map(change, variables)
