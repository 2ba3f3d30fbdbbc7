"""Twenty simultaneous starts of the same run, in a workdir that does not exist yet."""

import pytest

from tests.runs import Launch
from tests.tools.kill import FLAGS, difference

STARTS = 20


@pytest.mark.long
def test_one_of_twenty_simultaneous_starts_trains_and_the_result_is_that_of_one_run(tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    launch = Launch(alone, FLAGS)
    assert launch.end()[0] == 0, (tmp_path / "alone.log").read_text()
    statuses = [launch.end()[0] for launch in [Launch(shared, FLAGS) for _ in range(STARTS)]]
    said = (tmp_path / "shared.log").read_text()  # of all of them
    assert "Traceback" not in said
    assert said.count("; starting from random weights") == 1
    # The others wait for the one that trains. They find the run complete, or exit with one line.
    assert set(statuses) <= {0, 2} and 0 in statuses
    busy = f"error: {shared}: in use by another run; wait until it ends"
    assert said.count(busy) == said.count("error: ") == statuses.count(2)
    assert said.count("; resuming at step 24") == statuses.count(0) - 1
    assert difference(shared, alone) == ""
    names = [sorted(path.name for path in each.iterdir()) for each in (shared, alone)]
    assert names[0] == names[1]
    kept = [sorted(path.name for path in (each / "checkpoints").iterdir())
            for each in (shared, alone)]  # fmt: skip
    assert kept[0] == kept[1]
