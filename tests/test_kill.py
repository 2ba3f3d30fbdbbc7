"""One run of `tests/kill.py`; run it with more after changes to checkpoints."""

import pytest

from tests.tools import kill


@pytest.mark.slow
def test_killed_run_ends_as_an_uninterrupted_one():
    assert kill.main(["--runs", "1", "--seed", "2"]) == 0
