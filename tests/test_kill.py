"""One run of `tests/kill.py`; run it with more runs after changes to checkpoints."""

import pytest

from tests.tools import kill, kill_legs


@pytest.mark.slow
def test_killed_run_ends_as_an_uninterrupted_one():
    assert kill.main(["--runs", "1", "--kills", "1", "--seed", "2", "--shallow"]) == 0


@pytest.mark.long
def test_killed_legs_with_other_settings_are_all_described():
    assert kill_legs.main(["--runs", "3", "--seed", "5"]) == 0
