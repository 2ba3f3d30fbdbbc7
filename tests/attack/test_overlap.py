"""Two jobs in one workdir, of which the second starts before the first has ended.

That a start resumes from a save that ends in between is tested quickly in
`tests/training/test_loop.py`.
"""

import pytest

from tests.tools import kill


@pytest.mark.long
def test_runs_that_overlap_at_random_instants_end_as_an_unbroken_one():
    arguments = ["--runs", "20", "--overlap", "--signal", "TERM", "KILL", "--seed", "13"]
    assert kill.main(arguments) == 0
