"""How far numbers are apart, which of many comparisons is the worst, and what float32 resolves."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

JITTERED_RUNS = 24  # at most: of 1,500 numbers hundreds need it, and one of those is always unlucky


class Worst(NamedTuple):
    """The comparison of a fixture that comes nearest to failing, or fails the most."""

    what: str
    error: float
    tolerance: float
    resolution: float = 0.0  # what float32 leaves open, where that was needed to decide

    @property
    def passed(self) -> bool:
        return self.error <= max(self.tolerance, self.resolution)  # False for nan


class Expected(NamedTuple):
    """A recorded number or array, and how near ours must come to it."""

    value: np.ndarray
    tolerance: float
    scale: np.ndarray | float  # differences count as shares of this
    kind: str = ""  # numbers of one kind share what float32 resolves of them

    def error(self, actual) -> float:
        actual, value = np.asarray(actual, np.float64), np.asarray(self.value, np.float64)
        if actual.shape != value.shape:
            return np.inf
        errors = np.abs(actual - value) / self.scale
        return float(np.nan if np.isnan(errors).any() else np.max(errors, initial=0.0))


def absolute(value, tolerance: float) -> Expected:
    """Differences as they are."""
    return Expected(np.asarray(value), tolerance, 1.0)


def of_scale(value, tolerance: float) -> Expected:
    """Differences as shares of the largest expected magnitude."""
    return Expected(np.asarray(value), tolerance, np.max(np.abs(value), initial=0.0) or 1.0)


def relative(value, tolerance: float, floor: float = 1e-12) -> Expected:
    """Each difference as a share of its own expected magnitude."""
    scale = np.maximum(np.abs(np.asarray(value, np.float64)), floor)
    return Expected(np.asarray(value), tolerance, scale)


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
    """The worst row of a network's numbers against those recorded.

    A deep network in float32 does not determine every number to the tolerance asked for: an
    activation within rounding of its kink takes either slope, and a gradient norm upstream jumps
    by 1e-3; optimizer steps amplify that tenfold each. The recorded numbers hold such jumps of
    their own, which no other order of summation reproduces (float64 does not either). So where
    a row is over its tolerance, the network is run again with its weights changed by at most
    their last bit, and twice the largest change that this makes is what float32 resolves. Which
    of many gradient norms jumps is a matter of luck, so numbers of one `kind` share the largest.

    Args:
      compute: numbers by name, as they are for None and with jittered weights for a seed.
      expected: what was recorded, by the same names.
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
            if all(row.passed for row in rows):  # more runs only find larger changes
                break
        if all(row.passed for row in rows):
            # Show what needed this, not what came nearest to failing without it.
            return max(
                (r for r in rows if r.error > r.tolerance), key=lambda r: r.error / r.tolerance
            )
    compare = Comparisons()
    compare.rows = rows
    return compare.worst()


def jitter(variables, seed: int | None):
    """Arrays changed by at most one unit in their last place, or as they are for None."""
    import jax

    if seed is None:
        return variables
    random = np.random.RandomState(seed)

    def change(leaf):
        leaf = np.asarray(leaf, np.float32)
        towards = np.where(random.rand(*leaf.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        return np.where(random.rand(*leaf.shape) < 0.5, leaf, np.nextafter(leaf, towards))

    return jax.tree.map(change, variables)
