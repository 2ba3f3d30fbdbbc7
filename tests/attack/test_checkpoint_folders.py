"""Checkpoint folders that are links, pipes, too large, misnamed, saved by others, or deleted."""

import contextlib
import os
import shutil
import signal
from contextlib import closing
from pathlib import Path

import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.io import checkpoint_restore
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.io.checkpoint_files import saved_steps
from nanodet_jax.io.checkpoint_restore import DamagedCheckpointError
from tests.attack import checkpoints as made
from tests.tools import corrupt

LIKE = corrupt.state_of(7)


@contextlib.contextmanager
def within(seconds: float):
    """Raise a TimeoutError if the context takes longer."""

    def stop(*_):
        raise TimeoutError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def restore(workdir: Path):
    with closing(Checkpoints(workdir, writing=False)) as checkpoints:
        return checkpoints.restore(made.STEP, LIKE)


@pytest.mark.parametrize("writing", [True, False])
def test_linked_checkpoint_folder_is_an_error_and_its_target_is_kept(tmp_path, writing):
    elsewhere = tmp_path / "elsewhere"
    unfinished = elsewhere / "9.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    (unfinished / "file").write_text("mine")
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / "checkpoints"
    link.symlink_to(elsewhere)
    with (
        pytest.raises(UserError, match=f"{link}: is a symbolic link"),
        closing(Checkpoints(tmp_path / "run", writing=writing)) as checkpoints,
    ):
        if writing:
            checkpoints.save(LIKE)
    assert (unfinished / "file").read_text() == "mine"


@pytest.mark.parametrize("writing", [True, False])
@pytest.mark.parametrize("name", ["1", "3", "9.orbax-checkpoint-tmp", "damaged_2", "a\x1b[31m"])
def test_link_in_the_checkpoint_folder_is_an_error(tmp_path, name, writing):
    elsewhere = made.save(tmp_path / "other")
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a symbolic link") as raised:
        Checkpoints(tmp_path / "run", writing=writing)
    assert str(folder) in str(raised.value)
    assert "\x1b" not in str(raised.value)


PARTS = ["record/metadata", "variables/manifest.ocdbt", "variables/d/more", "_CHECKPOINT_METADATA"]


@pytest.mark.parametrize("kind", ["link", "link to a device", "pipe"])
@pytest.mark.parametrize("part", PARTS)
def test_checkpoint_with_an_irregular_file_is_damaged(tmp_path, part, kind):
    step = made.save(tmp_path)
    path = step / part
    with contextlib.suppress(FileNotFoundError):
        path.rename(tmp_path / "moved")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "link to a device" else tmp_path / "moved")
    with (
        within(10),
        pytest.raises(
            DamagedCheckpointError, match=f"{step}: is damaged .{part} is not a regular file"
        ),
    ):
        restore(tmp_path)


def test_checkpoint_with_too_many_files_is_damaged(tmp_path):
    step = made.save(tmp_path)
    for number in range(300):
        (step / f"file{number}").touch()
    with pytest.raises(DamagedCheckpointError, match="over 208 files and folders"):
        restore(tmp_path)


def test_checkpoint_with_too_large_files_is_damaged(tmp_path):
    step = made.save(tmp_path)
    with (step / "variables" / "d" / "more").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedCheckpointError, match="more than 17 MB"):
        restore(tmp_path)


@pytest.mark.parametrize("target", ["/dev/zero", "pipe"])
def test_metrics_that_are_not_a_regular_file_count_as_not_evaluated(tmp_path, target, capsys):
    step = made.save(tmp_path)
    if target == "pipe":
        os.mkfifo(step / "metrics.json")
    else:
        (step / "metrics.json").symlink_to(target)
    with within(10), closing(Checkpoints(tmp_path, writing=False)) as checkpoints:
        assert checkpoints.best_step() is None
    assert f"{step}/metrics.json: is damaged" in capsys.readouterr().out


ODD_NAMES = ["²", "٣", "1٣", "007", "-1", "+3", " 3", "1_0", "3.0", "0x3", "1e3", "9" * 19]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_folder_whose_name_is_not_a_step_is_ignored(tmp_path, name):
    step = made.save(tmp_path)
    shutil.copytree(step, step.with_name(name))
    with closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.latest_step() == made.STEP
        assert corrupt.same(checkpoints.restore_latest(LIKE), corrupt.state_of(made.STEP))
        for later in (2, 3):
            checkpoints.save(corrupt.state_of(later))
        checkpoints.wait()
        assert checkpoints.latest_step() == 3
    assert step.with_name(name).is_dir()


def test_saved_steps_are_folders_in_ascending_order(tmp_path):
    for name in ("10", "9", "0", "damaged_3", "4.orbax-checkpoint-tmp", *ODD_NAMES[:6]):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    assert saved_steps(tmp_path) == [0, 9, 10]
    assert saved_steps(tmp_path / "missing") == []
    assert saved_steps(tmp_path / "5") == []


def test_step_saved_by_another_process_is_an_error(tmp_path):
    with closing(Checkpoints(tmp_path)) as ours, closing(Checkpoints(tmp_path)) as others:
        ours.save(corrupt.state_of(1))
        ours.wait()
        others.save(corrupt.state_of(2))
        others.wait()
        with pytest.raises(UserError, match=f"{tmp_path}/checkpoints/2: exists, but was not saved"):
            ours.save(corrupt.state_of(2))
        ours.save(corrupt.state_of(1))  # saved here: unchanged
    with closing(Checkpoints(tmp_path)) as resumed:
        with pytest.raises(UserError, match="exists, but was not saved"):
            resumed.save(corrupt.state_of(2))
        resumed.restore(2, LIKE)
        resumed.save(corrupt.state_of(2))


@pytest.mark.parametrize("when", ["check_folder", "read_record", "read_arrays"])
def test_checkpoint_deleted_while_it_is_restored_is_damaged(tmp_path, monkeypatch, when):
    step = made.save(tmp_path)
    function = getattr(checkpoint_restore, when)

    def deleting(*args):
        shutil.rmtree(step)
        return function(*args)

    monkeypatch.setattr(checkpoint_restore, when, deleting)
    with within(30), closing(Checkpoints(tmp_path)) as checkpoints:
        with pytest.raises(DamagedCheckpointError, match=f"{step}: is damaged"):
            checkpoints.restore(made.STEP, LIKE)
        with pytest.raises(UserError):
            checkpoints.restore_latest(LIKE)


def test_damaged_checkpoint_deleted_before_it_is_set_aside_is_an_error(tmp_path, monkeypatch):
    step = made.save(tmp_path)
    read = checkpoint_restore.read_arrays

    def deleting(*args):
        shutil.rmtree(step)
        return read(*args)

    monkeypatch.setattr(checkpoint_restore, "read_arrays", deleting)
    with (
        closing(Checkpoints(tmp_path)) as checkpoints,
        pytest.raises(UserError, match="damaged and cannot be moved aside"),
    ):
        checkpoints.restore_latest(LIKE)
