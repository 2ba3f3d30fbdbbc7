"""Comparison of numbers with recorded ones: errors, the worst of them, and float32 resolution."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

MAX_JITTERED_RUNS = 24  # so many because hundreds of 1,500 numbers may depend on chance


class Worst(NamedTuple):
    """Comparison of a fixture with the largest error relative to what is allowed."""

    what: str
    error: float
    tolerance: float
    resolution: float = 0.0  # float32 resolution of the number, if it was measured

    @property
    def passed(self) -> bool:
        return self.error <= max(self.tolerance, self.resolution)  # False for nan


class Expected(NamedTuple):
    """Recorded number or array, and the allowed difference from it."""

    value: np.ndarray
    tolerance: float
    scale: np.ndarray | float  # differences are divided by this
    kind: str = ""  # numbers of one kind share their float32 resolution

    def error(self, actual) -> float:
        actual, value = np.asarray(actual, np.float64), np.asarray(self.value, np.float64)
        if actual.shape != value.shape:
            return np.inf
        errors = np.abs(actual - value) / self.scale
        return float(np.nan if np.isnan(errors).any() else np.max(errors, initial=0.0))


def absolute(value, tolerance: float) -> Expected:
    """Expect absolute differences within the tolerance."""
    return Expected(np.asarray(value), tolerance, 1.0)


def of_scale(value, tolerance: float) -> Expected:
    """Expect differences within a fraction of the largest expected magnitude."""
    return Expected(np.asarray(value), tolerance, np.max(np.abs(value), initial=0.0) or 1.0)


def relative(value, tolerance: float, floor: float = 1e-12) -> Expected:
    """Expect each difference within a fraction of its own expected magnitude."""
    scale = np.maximum(np.abs(np.asarray(value, np.float64)), floor)
    return Expected(np.asarray(value), tolerance, scale)


class Comparisons:
    """Collector of errors; the worst is the largest relative to its tolerance."""

    def __init__(self) -> None:
        self.rows: list[Worst] = []

    def add(self, what: str, error: float, tolerance: float) -> None:
        self.rows.append(Worst(what, float(error), tolerance))

    def equal(self, what: str, actual, expected) -> None:
        """Compare integers or flags, none of which may differ."""
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


def compare_network(
    compute: Callable[[int | None], Mapping[str, np.ndarray]], expected: Mapping[str, Expected]
) -> Worst:
    """Compare the numbers of a network with recorded ones, and return the worst.

    A deep network in float32 does not determine every number to its tolerance. An activation within
    rounding of its kink may take either slope, which changes a gradient norm upstream by 1e-3; each
    optimizer step amplifies this tenfold. The recorded numbers contain such jumps, which no other
    order of summation reproduces (nor does float64). Where a number exceeds its tolerance, the
    network is therefore run again with weights changed by at most their last bit. Twice the largest
    change is the float32 resolution of the number. Which of many gradient norms jumps is random, so
    numbers of one `kind` share the largest resolution.

    Args:
      compute: returns numbers by name: of the weights for None, of jittered weights for a seed.
      expected: recorded numbers by the same names.
    """
    actual = compute(None)
    rows = [Worst(what, e.error(actual[what]), e.tolerance) for what, e in expected.items()]
    if not all(row.passed for row in rows):
        strict, resolved = (
            rows,
            dict.fromkeys((e.kind or what for what, e in expected.items()), 0.0),
        )
        for seed in range(MAX_JITTERED_RUNS):
            run = compute(seed)
            for what, e in expected.items():
                around = e._replace(value=np.asarray(actual[what]))
                change = 2 * around.error(run[what])
                resolved[e.kind or what] = max(change, resolved[e.kind or what])
            rows = [
                row if row.passed else row._replace(resolution=resolved[e.kind or row.what])
                for row, e in zip(strict, expected.values())
            ]
            if all(row.passed for row in rows):  # more runs only find larger changes
                break
        if all(row.passed for row in rows):
            # Show a number that needed the resolution, not the largest error without it.
            return max(
                (r for r in rows if r.error > r.tolerance), key=lambda r: r.error / r.tolerance
            )
    compare = Comparisons()
    compare.rows = rows
    return compare.worst()


def jitter(variables, seed: int | None):
    """Change arrays by at most one unit in their last place; return them unchanged for None."""
    import jax

    if seed is None:
        return variables
    random = np.random.RandomState(seed)

    def change(leaf):
        leaf = np.asarray(leaf, np.float32)
        towards = np.where(random.rand(*leaf.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        return np.where(random.rand(*leaf.shape) < 0.5, leaf, np.nextafter(leaf, towards))

    return jax.tree.map(change, variables)
