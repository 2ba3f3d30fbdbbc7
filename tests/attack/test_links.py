"""Symbolic links, pipes and devices in a workdir: no write outside it, and no endless wait."""

import json
import os
import warnings

import numpy as np
import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.files import (
    JSON_LIMIT,
    atomic_write,
    make_folder,
    open_regular,
    read_json,
    write_json,
)
from nanodet_jax.training.lock import lock_workdir
from nanodet_jax.training.metric_logger import MetricLogger
from nanodet_jax.visualize import save_image

PRECIOUS = b"precious"
PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def victim(tmp_path):
    """Create a file of the user, which the test must not change."""
    path = tmp_path / "victim"
    path.write_bytes(PRECIOUS)
    yield path
    assert path.read_bytes() == PRECIOUS


@pytest.fixture
def elsewhere(tmp_path):
    """Create a folder of the user, whose content the test must not change."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "file").write_bytes(PRECIOUS)
    yield folder
    assert [path.name for path in folder.iterdir()] == ["file"]


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_file_that_is_a_link_is_replaced_and_its_target_unchanged(workdir, victim):
    for name in ("x.json", "x.jpg", "x.bin"):
        (workdir / name).symlink_to(victim)
    write_json(workdir / "x.json", {"AP": 0.5})
    save_image(workdir / "x.jpg", PICTURE)
    with atomic_write(workdir / "x.bin") as file:
        file.write(b"new")
    assert not any(path.is_symlink() for path in workdir.iterdir())
    assert json.loads((workdir / "x.json").read_text()) == {"AP": 0.5}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(workdir):
    path = workdir / "x"
    path.write_bytes(PRECIOUS)
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == PRECIOUS and list(workdir.iterdir()) == [path]


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.tmp", ".metrics.jsonl.tmp"])
def test_the_log_is_never_written_through_a_link(workdir, victim, name):
    (workdir / name).symlink_to(victim)
    log = MetricLogger(workdir, start_step=0, total_steps=1)
    log.log_train(1, 1, dict.fromkeys(
        ("loss", "loss_qfl", "loss_bbox", "loss_dfl", "learning_rate", "images_per_second"), 1.0
    ), 0.5)  # fmt: skip
    log.close()
    assert json.loads((workdir / "metrics.jsonl").read_text())["step"] == 1


def test_dangling_link_as_log_is_refused_or_replaced(workdir, tmp_path):
    (workdir / "metrics.jsonl").symlink_to(tmp_path / "absent")
    with warnings.catch_warnings(), pytest.raises(UserError, match=r"metrics\.jsonl"):
        MetricLogger(workdir, start_step=0, total_steps=1)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("name", ["pictures", "tensorboard"])
def test_folder_that_is_a_link_is_refused_by_name(workdir, elsewhere, name):
    (workdir / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=rf"run/{name}: is a symbolic link"):
        log = MetricLogger(workdir, start_step=0, total_steps=1)
        try:
            log.log_image("val", 1, PICTURE)
        finally:
            log.close()


def test_workdir_that_is_a_link_is_accepted(workdir, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(workdir)
    assert make_folder(link / "pictures").is_dir()


def test_lock_that_is_a_link_is_refused(workdir, victim):
    (workdir / "lock").symlink_to(victim)
    with pytest.raises(UserError, match="cannot be written to"):
        lock_workdir(workdir)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "linked fifo", "linked device"])
def test_only_regular_files_are_read(workdir, kind):
    path = workdir / "metrics.json"
    if kind.endswith("fifo"):
        os.mkfifo(workdir / "fifo")
        path.symlink_to(workdir / "fifo") if "linked" in kind else os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    for read in (open_regular, read_json):
        with pytest.raises(ValueError, match="is not a regular file"):
            read(path)


def test_json_that_is_too_large_or_too_deep_is_refused(workdir):
    path = workdir / "metrics.json"
    path.write_bytes(b"[" + b"0," * (JSON_LIMIT // 2) + b"0]")
    with pytest.raises(ValueError, match="bytes; the limit for a json file is"):
        read_json(path)
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(path)
