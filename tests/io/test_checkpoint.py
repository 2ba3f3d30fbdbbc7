"""What stays on disk, what comes back, and that what was saved is what there was."""

import shutil
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.state import create_state
from tests import corrupt

OPTIMIZER = optax.adamw(1e-3)


def make_state(step, channels=3, name="kernel"):
    """A small state whose every leaf is told by `step`."""
    random = np.random.default_rng(step)
    variables = {
        "params": {"layer": {name: random.normal(size=(2, channels)).astype(np.float32)}},
        "batch_stats": {"norm": {"mean": random.normal(size=channels).astype(np.float32)}},
    }
    state = create_state(variables, OPTIMIZER)
    moments = jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), state.opt_state)
    return state.replace(step=jnp.asarray(step, jnp.int32), opt_state=moments)


def averaged(step):
    """The same with an average that differs from what it is the average of."""
    state = make_state(step)
    return state.replace(average=jax.tree.map(lambda leaf: leaf + 1, state.variables))


def test_an_average_is_restored_whole_and_inferred_with(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(averaged(1))
    checkpoints.wait()
    assert_same(checkpoints.restore(1, averaged(2)), averaged(1))
    assert_same(checkpoints.restore_variables(1, make_state(2).variables), averaged(1).average)
    with pytest.raises(UserError, match="does not fit"):
        checkpoints.restore(1, make_state(2))  # a run without an average
    checkpoints.close()


def save_all(folder, scores, keep_every_steps=0):
    """Save step 1, 2, ... with these APs, None for none, and wait."""
    checkpoints = Checkpoints(folder, keep_every_steps)
    for step, score in enumerate(scores, start=1):
        checkpoints.save(make_state(step))
        if score is not None:
            checkpoints.save_metrics(step, corrupt.metrics_of(score))
    checkpoints.wait()
    return checkpoints


def steps_on_disk(folder):
    return {int(path.name) for path in (folder / "checkpoints").iterdir()}


def test_nothing_is_written_when_looking(tmp_path):
    """A run may be going on: what it is writing looks like what a crash has left."""
    save_all(tmp_path, [0.5, None]).close()
    half_written = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    half_written.mkdir()
    before = sorted(tmp_path.rglob("*"))
    looking = Checkpoints(tmp_path, writing=False)
    assert_same(looking.restore_best_variables(make_state(7).variables), make_state(1).variables)
    looking.close()
    assert sorted(tmp_path.rglob("*")) == before
    going_on = Checkpoints(tmp_path)
    going_on.save(make_state(3))  # before which Orbax has tidied up
    going_on.close()
    assert not half_written.exists()


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


SCORES = {
    "no evaluation": ([None, None, None], 3, None, {2, 3}),
    "the newest is best": ([0.1, 0.2, 0.3], 3, 3, {2, 3}),
    "best in the middle": ([0.1, 0.3, None, 0.2, None], 5, 2, {2, 4, 5}),
    "zero is a score": ([None, 0.0, None], 3, 2, {2, 3}),
    "less than zero, where nothing can be found": ([-1.0, None], 2, 1, {1, 2}),
}


@pytest.mark.parametrize("case", SCORES)
def test_newest_and_best_stay(tmp_path, case):
    scores, newest, best, kept = SCORES[case]
    checkpoints = save_all(tmp_path, scores)
    for again in (checkpoints, Checkpoints(tmp_path)):  # and in another process
        assert again.latest_step() == newest
        assert again.best_step() == best
        if best is not None:
            assert again.metrics(best) == corrupt.metrics_of(scores[best - 1])
        again.close()
    assert steps_on_disk(tmp_path) == kept


def test_every_nth_stays(tmp_path):
    save_all(tmp_path, [None, 0.5, 0.7, None, 0.1, None, None], keep_every_steps=2).close()
    assert steps_on_disk(tmp_path) == {2, 3, 4, 6, 7}


def test_an_empty_folder_has_none(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None
    checkpoints.close()


def test_restored_bit_for_bit(tmp_path):
    checkpoints = save_all(tmp_path, [0.2, None])
    for step in (1, 2):
        saved = make_state(step)
        assert_same(checkpoints.restore(step, like=make_state(7)), saved)
        shapes = jax.eval_shape(lambda: make_state(7).variables)
        assert_same(checkpoints.restore_variables(step, like=shapes), saved.variables)
    checkpoints.close()


@pytest.mark.parametrize("other", [{"channels": 4}, {"name": "bias"}])
def test_another_models_state_is_refused(tmp_path, other):
    checkpoints = save_all(tmp_path, [None])
    like = make_state(1, **other)
    for restore, wanted in (
        (checkpoints.restore, like),
        (checkpoints.restore_variables, like.variables),
    ):
        with pytest.raises(UserError, match=f"{tmp_path}/checkpoints/1: does not fit"):
            restore(1, wanted)
    checkpoints.close()


def test_another_optimizers_state_is_refused(tmp_path):
    checkpoints = save_all(tmp_path, [None])
    like = make_state(1)
    like = like.replace(opt_state=optax.sgd(0.1, momentum=0.9).init(like.params))
    with pytest.raises(UserError, match="optimizer"):
        checkpoints.restore(1, like)
    assert_same(checkpoints.restore_variables(1, like.variables), like.variables)
    checkpoints.close()


def test_a_saved_step_is_left_as_it_is_and_rated_later(tmp_path):
    checkpoints = save_all(tmp_path, [None])
    checkpoints.save(make_state(7).replace(step=np.int32(1)))
    assert checkpoints.metrics(1) is None
    checkpoints.save_metrics(1, corrupt.metrics_of(0.5))
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.metrics(1) == corrupt.metrics_of(0.5)
    assert_same(again.restore(1, make_state(7)), make_state(1))
    again.close()


def test_a_damaged_checkpoint_is_set_aside(tmp_path, capsys):
    save_all(tmp_path, [0.25, 0.5]).close()
    for again in ("damaged_2", "damaged_2_2"):
        shutil.rmtree(tmp_path / "checkpoints" / "2" / "training")
        looking = Checkpoints(tmp_path, writing=False)  # changes nothing, and says so each time
        variables = looking.restore_best_variables(make_state(7).variables)
        assert_same(variables, make_state(2).variables)  # these are whole
        looking.close()
        checkpoints = Checkpoints(tmp_path)
        assert_same(checkpoints.restore_latest(make_state(7)), make_state(1))
        assert f"{tmp_path}/checkpoints/2: is damaged" in capsys.readouterr().out
        assert (tmp_path / "checkpoints" / again).is_dir()
        assert checkpoints.latest_step() == checkpoints.best_step() == 1
        checkpoints.save(make_state(2))
        checkpoints.save_metrics(2, corrupt.metrics_of(0.5))
        checkpoints.close()


def test_nothing_is_guessed_where_no_checkpoint_is_whole(tmp_path):
    save_all(tmp_path, [None, None]).close()
    for step in "12":
        (tmp_path / "checkpoints" / step / "record" / "metadata").write_text("{}")
    checkpoints = Checkpoints(tmp_path, writing=False)
    with pytest.raises(UserError, match="all checkpoints are damaged"):
        checkpoints.restore_best_variables(make_state(7).variables)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(
        UserError, match=r"all checkpoints are damaged \(.*damaged_2, .*damaged_1\)"
    ):
        checkpoints.restore_latest(make_state(7))
    checkpoints.close()


# Where an array cannot be read, Orbax leaves others in the midst of it, which then say so.
@pytest.mark.filterwarnings("ignore:Exception ignored in")
def test_no_damage_goes_unnoticed():
    outcomes = sum(corrupt.check(cases=20, seed=1).values(), Counter())
    assert set(outcomes) <= {"whole", "before", "refused"}
    assert outcomes["before"] >= 5


def test_a_disk_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in its place")
    with pytest.raises(UserError, match=f"{tmp_path}/checkpoints: cannot be written"):
        Checkpoints(tmp_path)


def test_saving_takes_a_copy(tmp_path):
    """The background writer must see neither donated buffers nor arrays that change later."""
    checkpoints = Checkpoints(tmp_path, keep_every_steps=1)
    advance = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state, expected = make_state(1), []
    for _ in range(3):
        expected.append(jax.tree.map(np.array, state))
        checkpoints.save(state)
        state = advance(state)
    host = jax.tree.map(np.array, state)
    expected.append(jax.tree.map(np.array, state))
    checkpoints.save(host)
    for leaf in jax.tree.leaves(host):
        leaf[...] = 77
    checkpoints.wait()
    for step, saved in enumerate(expected, start=1):
        assert_same(checkpoints.restore(step, make_state(7)), saved)
    checkpoints.close()
