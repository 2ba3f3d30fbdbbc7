"""Two jobs in one workdir, of which the second starts before the first has ended."""

import shutil

import pytest

from nanodet_jax import train_and_evaluate
from nanodet_jax.training import loop
from tests import kill
from tests.runs import final_state
from tests.training.test_loop import STEPS, one_device, tiny_config, unbroken  # noqa: F401


def test_a_save_that_ends_while_the_next_run_starts_is_resumed(
    unbroken,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    first, metrics = unbroken
    workdir = tmp_path / "run"
    lock_for_all = loop.lock_for_all

    def lock_after_the_first_has_saved(path):
        assert path == workdir and not workdir.exists()
        shutil.copytree(first, workdir)
        return lock_for_all(path)

    monkeypatch.setattr(loop, "lock_for_all", lock_after_the_first_has_saved)
    log = (first / "metrics.jsonl").read_bytes()
    assert train_and_evaluate(tiny_config(), workdir) == metrics
    assert f"resuming at step {STEPS}" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == log
    assert int(final_state(workdir, STEPS).step) == STEPS


@pytest.mark.long
def test_runs_that_overlap_at_random_instants_end_as_an_unbroken_one():
    arguments = ["--runs", "20", "--overlap", "--signal", "TERM", "KILL", "--seed", "13"]
    assert kill.main(arguments) == 0
