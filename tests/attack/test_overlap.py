"""Two jobs in one workdir, of which the second starts before the first ends.

`tests/training/test_loop.py` has a quick test of a start during the last save of another run.
"""

import pytest

from tests.tools import kill


@pytest.mark.long
def test_overlapping_runs_end_as_an_uninterrupted_one():
    arguments = ["--runs", "20", "--overlap", "--signal", "TERM", "KILL", "--seed", "13"]
    assert kill.main(arguments) == 0
