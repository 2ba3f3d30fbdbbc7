"""Two processes in one workdir: the second starts before the first has ended.

`tests/training/test_loop.py` has a fast test of one case: the second process resumes from a
checkpoint that is saved while it starts.
"""

import pytest

from tests.tools import kill


@pytest.mark.long
def test_overlapping_runs_end_like_an_uninterrupted_one():
    arguments = ["--runs", "20", "--overlap", "--signal", "TERM", "KILL", "--seed", "13"]
    assert kill.main(arguments) == 0
