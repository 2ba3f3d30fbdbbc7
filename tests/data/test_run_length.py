"""Length of a run: steps per epoch, total steps and epochs."""

import pytest

from nanodet_jax.config import Config
from nanodet_jax.data.run_length import RunLength, run_length
from nanodet_jax.errors import UserError


def make_config(batch_size, epochs, steps=0):
    config = Config()
    config.data.batch_size = batch_size
    config.training.epochs, config.training.steps = epochs, steps
    return config


@pytest.mark.parametrize(
    ("images", "config", "expected"),
    [
        (12, make_config(4, epochs=5), (3, 15, 5)),
        (15, make_config(4, epochs=5), (3, 15, 5)),  # the last 3 images are dropped
        (12, make_config(4, epochs=5, steps=7), (3, 7, 3)),
        (4, make_config(4, epochs=2), (1, 2, 2)),
    ],
)
def test_run_length_counts_whole_batches(images, config, expected):
    length = run_length(config, images)
    assert (length.steps_per_epoch, length.total_steps, length.epochs) == expected


def test_epoch_of_step_is_counted_from_one():
    length = run_length(make_config(4, epochs=2), 12)
    assert [length.epoch_of(step) for step in (1, 3, 4, 6)] == [1, 1, 2, 2]


def test_run_length_of_less_than_a_batch_is_an_error():
    with pytest.raises(UserError, match=r"config\.data\.batch_size=5: must be at most .* 4$"):
        run_length(make_config(5, epochs=1), 4)


def test_due_steps_are_every_second_epoch_and_the_last_step():
    length = RunLength(3, 14)
    assert [step for step in range(1, 15) if length.is_due(2, step)] == [6, 12, 14]
