"""The quick form of `kill.py`: its fifty runs are for whoever changes how runs are saved."""

import pytest

from tests.tools import kill


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not():
    assert kill.main(["--runs", "1", "--seed", "2"]) == 0
