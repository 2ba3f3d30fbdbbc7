"""Steps and epochs of a run."""

import pytest

from nanodet_jax.data.run_length import RunLength


@pytest.mark.parametrize(("total_steps", "epochs"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_epochs_of_a_run_are_rounded_up(total_steps, epochs):
    assert RunLength(4, total_steps).epochs == epochs


def test_epoch_of_a_step_counts_from_one():
    assert [RunLength(3, 9).epoch_of(step) for step in range(1, 8)] == [1, 1, 1, 2, 2, 2, 3]


def test_due_steps_are_every_second_epoch_and_the_last_step():
    length = RunLength(3, 14)
    assert [step for step in range(1, 15) if length.is_due(2, step)] == [6, 12, 14]
