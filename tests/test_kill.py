"""One run of `kill.py`. After changes to saving, run `kill.py` with all fifty runs."""

import pytest

from tests.tools import kill


@pytest.mark.slow
def test_killed_and_resumed_run_equals_an_uninterrupted_one():
    assert kill.main(["--runs", "1", "--seed", "2"]) == 0
