"""Faults that are raised or counted."""

import pytest

from nanodet_jax.data.faults import Fault, FaultCounter, FaultKind


def test_counter_counts_tolerated_faults_once_and_raises_others():
    counter = FaultCounter()
    for message in ("a: tiny", "b: tiny", "a: tiny"):
        counter(Fault(FaultKind.EMPTY, message, tolerated=True))
    counter(Fault(FaultKind.OUTSIDE, "c: out", tolerated=True))
    assert counter.notes("val") == [
        "note: boxes smaller than one pixel in val: 2; the first: a: tiny",
        "note: boxes outside their image in val: 1; the first: c: out",
    ]
    with pytest.raises(Fault, match="d: wrong"):
        counter(Fault(FaultKind.NUMBERS, "d: wrong"))
    assert len(counter.notes("val")) == 2
