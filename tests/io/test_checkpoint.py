"""Checkpoints: which are kept, and that a restored state equals the saved one."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.state import create_state
from tests.tools import corrupt

OPTIMIZER = optax.adamw(1e-3)


def make_state(step, channels=3, name="kernel"):
    """Return a small state in which every leaf depends on `step`."""
    random = np.random.default_rng(step)
    variables = {
        "params": {"layer": {name: random.normal(size=(2, channels)).astype(np.float32)}},
        "batch_stats": {"norm": {"mean": random.normal(size=channels).astype(np.float32)}},
    }
    state = create_state(variables, OPTIMIZER)
    moments = jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), state.opt_state)
    return state.replace(step=jnp.asarray(step, jnp.int32), opt_state=moments)


def averaged(step):
    """Return the same state with an average that differs from its variables."""
    state = make_state(step)
    return state.replace(ema=jax.tree.map(lambda leaf: leaf + 1, state.variables))


def test_state_with_an_average_is_restored_and_its_average_is_used_for_inference(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(averaged(1))
    checkpoints.wait()
    assert_same(checkpoints.restore(1, averaged(2)), averaged(1))
    assert_same(checkpoints.restore_variables(1, make_state(2).variables), averaged(1).ema)
    with pytest.raises(UserError, match="does not fit"):
        checkpoints.restore(1, make_state(2))  # without an average
    checkpoints.close()


def save_all(folder, scores, keep=lambda step: False):
    """Save steps 1, 2, ... with these APs (None: no metrics), and wait."""
    checkpoints = Checkpoints(folder)
    checkpoints.keep = keep
    for step, score in enumerate(scores, start=1):
        checkpoints.save(make_state(step))
        if score is not None:
            checkpoints.save_metrics(step, corrupt.metrics_of(score))
    checkpoints.wait()
    return checkpoints


def steps_on_disk(folder):
    return {int(path.name) for path in (folder / "checkpoints").iterdir()}


def test_checkpoints_opened_for_reading_change_nothing(tmp_path):
    """In a run in progress, an unfinished checkpoint looks like the remains of a crash."""
    save_all(tmp_path, [0.5, None]).close()
    unfinished = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpoints(tmp_path, writing=False)
    assert_same(reader.restore_best_variables(make_state(7).variables), make_state(1).variables)
    reader.close()
    assert sorted(tmp_path.rglob("*")) == before
    resumed = Checkpoints(tmp_path)
    resumed.save(make_state(3))  # Orbax removes unfinished checkpoints first
    resumed.close()
    assert not unfinished.exists()


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


SCORES = {
    "no evaluation": ([None, None, None], 3, None, {2, 3}),
    "newest is best": ([0.1, 0.2, 0.3], 3, 3, {2, 3}),
    "best in the middle": ([0.1, 0.3, None, 0.2, None], 5, 2, {2, 4, 5}),
    "score of zero": ([None, 0.0, None], 3, 2, {2, 3}),
    "score of -1, without ground truth": ([-1.0, None], 2, 1, {1, 2}),
}


@pytest.mark.parametrize("case", SCORES)
def test_newest_two_and_best_checkpoints_are_kept(tmp_path, case):
    scores, newest, best, kept = SCORES[case]
    checkpoints = save_all(tmp_path, scores)
    for again in (checkpoints, Checkpoints(tmp_path)):  # as in another process
        assert again.latest_step() == newest
        assert again.best_step() == best
        if best is not None:
            assert again.metrics(best) == corrupt.metrics_of(scores[best - 1])
        again.close()
    assert steps_on_disk(tmp_path) == kept


def test_checkpoints_of_every_nth_step_are_kept(tmp_path):
    save_all(
        tmp_path, [None, 0.5, 0.7, None, 0.1, None, None], keep=lambda step: step % 2 == 0
    ).close()
    assert steps_on_disk(tmp_path) == {2, 3, 4, 6, 7}


def test_empty_folder_has_no_latest_or_best_step(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None
    checkpoints.close()


def test_restored_state_equals_the_saved_state_bit_for_bit(tmp_path):
    checkpoints = save_all(tmp_path, [0.2, None])
    for step in (1, 2):
        saved = make_state(step)
        assert_same(checkpoints.restore(step, like=make_state(7)), saved)
        shapes = jax.eval_shape(lambda: make_state(7).variables)
        assert_same(checkpoints.restore_variables(step, like=shapes), saved.variables)
    checkpoints.close()


@pytest.mark.parametrize("other", [{"channels": 4}, {"name": "bias"}])
def test_state_of_another_model_is_refused(tmp_path, other):
    checkpoints = save_all(tmp_path, [None])
    like = make_state(1, **other)
    for restore, wanted in (
        (checkpoints.restore, like),
        (checkpoints.restore_variables, like.variables),
    ):
        with pytest.raises(UserError, match=f"{tmp_path}/checkpoints/1: does not fit"):
            restore(1, wanted)
    checkpoints.close()


def test_state_of_another_optimizer_is_refused_but_its_variables_are_not(tmp_path):
    checkpoints = save_all(tmp_path, [None])
    like = make_state(1)
    like = like.replace(opt_state=optax.sgd(0.1, momentum=0.9).init(like.params))
    with pytest.raises(UserError, match="optimizer"):
        checkpoints.restore(1, like)
    assert_same(checkpoints.restore_variables(1, like.variables), like.variables)
    checkpoints.close()


def test_saved_step_is_not_saved_again_and_takes_metrics_later(tmp_path):
    checkpoints = save_all(tmp_path, [None])
    checkpoints.save(make_state(7).replace(step=np.int32(1)))
    assert checkpoints.metrics(1) is None
    checkpoints.save_metrics(1, corrupt.metrics_of(0.5))
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.metrics(1) == corrupt.metrics_of(0.5)
    assert_same(again.restore(1, make_state(7)), make_state(1))
    again.close()


def test_damaged_checkpoint_is_moved_aside_and_the_one_before_restored(tmp_path, capsys):
    save_all(tmp_path, [0.25, 0.5]).close()
    for again in ("damaged_2", "damaged_2_2"):
        shutil.rmtree(tmp_path / "checkpoints" / "2" / "training")
        reader = Checkpoints(
            tmp_path, writing=False
        )  # changes nothing, and reports the damage each time
        variables = reader.restore_best_variables(make_state(7).variables)
        assert_same(variables, make_state(2).variables)  # the variables are not damaged
        reader.close()
        checkpoints = Checkpoints(tmp_path)
        assert_same(checkpoints.restore_latest(make_state(7)), make_state(1))
        assert f"{tmp_path}/checkpoints/2: is damaged" in capsys.readouterr().out
        assert (tmp_path / "checkpoints" / again).is_dir()
        assert checkpoints.latest_step() == checkpoints.best_step() == 1
        checkpoints.save(make_state(2))
        checkpoints.save_metrics(2, corrupt.metrics_of(0.5))
        checkpoints.close()


def test_restore_fails_if_all_checkpoints_are_damaged(tmp_path):
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


# If Orbax cannot read an array, it abandons the reads of others, which then raise warnings.
@pytest.mark.filterwarnings("ignore:Exception ignored in")
def test_random_damage_is_always_detected():
    outcomes = corrupt.check(cases=20, seed=1)
    assert set().union(*outcomes.values()) <= {"whole", "before", "refused"}
    # How many other files Orbax writes, and which of them it reads, differs from run to run.
    for file in ("record/metadata", "training/manifest.ocdbt"):
        assert set(outcomes[file]) == {"before"}


def test_folder_that_cannot_be_made_is_an_error_with_its_path(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in its place")
    with pytest.raises(UserError, match=f"{tmp_path}/checkpoints: cannot be written"):
        Checkpoints(tmp_path)


def test_save_copies_the_state(tmp_path):
    """Donated buffers, and arrays that change later, must not reach the background writer."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.keep = lambda step: True
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
