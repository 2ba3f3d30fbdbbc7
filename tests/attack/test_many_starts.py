"""Twenty simultaneous starts of the same run in a new workdir."""

import pytest

from tests.runs import Launch
from tests.tools.kill import FLAGS, difference

STARTS = 20


@pytest.mark.long
def test_twenty_simultaneous_starts_leave_the_workdir_of_one_run(tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    launch = Launch(alone, FLAGS)
    assert launch.end()[0] == 0, (tmp_path / "alone.log").read_text()
    statuses = [launch.end()[0] for launch in [Launch(shared, FLAGS) for _ in range(STARTS)]]
    said = (tmp_path / "shared.log").read_text()  # of all processes
    assert "Traceback" not in said
    assert said.count("; starting from random weights") == 1
    # The other processes wait. They find the run complete, or give up with one line.
    assert set(statuses) <= {0, 2} and 0 in statuses
    busy = f"error: {shared}: in use by another run; wait until it ends"
    assert said.count(busy) == said.count("error: ") == statuses.count(2)
    assert said.count(": already finished at step 24 of 24; ") == statuses.count(0) - 1
    assert difference(shared, alone) == ""
    names = [sorted(path.name for path in each.iterdir()) for each in (shared, alone)]
    assert names[0] == names[1]
    kept = [sorted(path.name for path in (each / "checkpoints").iterdir())
            for each in (shared, alone)]  # fmt: skip
    assert kept[0] == kept[1]
