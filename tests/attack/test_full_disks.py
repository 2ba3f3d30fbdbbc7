"""A disk that becomes full or read-only at each of the writes of a run."""

import gc
import json

import pytest

from nanodet_jax import files, train_and_evaluate
from nanodet_jax.cli import main as cli
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation import evaluate
from nanodet_jax.io.checkpoint import Checkpoints
from nanodet_jax.io.checkpoint_metrics import CheckpointMetrics
from nanodet_jax.training.history import Leg
from nanodet_jax.training.metric_logger import MetricLogger
from nanodet_jax.training.tensorboard import EventWriter
from tests.attack.disks import empty, fill, mount, small_disk
from tests.builders import tiny_config
from tests.runs import assert_same_end
from tests.training.test_loop import one_device as one_device

# If a checkpoint cannot be written, TensorStore's threads raise "Event loop is closed" where it
# cannot be caught; the command line hides it from users.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STEPS = 8
# The call of a run before which the disk is filled, and a part of the error. While the disk is
# full, closing the log may fail too, and the error may name the log.
WRITES = {
    "about.json": (Leg, "begin", 1, "about.json: cannot be written"),
    "metrics.jsonl": (MetricLogger, "_write", 1, "cannot be written"),
    "TensorBoard": (EventWriter, "add_image", 1, "tensorboard: cannot be written"),
    "a picture": (MetricLogger, "log_image", 2, "cannot be written"),
    "a checkpoint": (Checkpoints, "save", 1, "cannot be written"),
    "a later checkpoint": (Checkpoints, "save", 2, "cannot be written"),
    "metrics of a checkpoint": (CheckpointMetrics, "save", 1, "cannot be written"),
}
# These cases take minutes. Objects that Orbax leaves after an error are reported in later tests of
# the same process. `tests/training/test_full_disk.py` tests a checkpoint in a subprocess.
CASES = [pytest.param(name, marks=pytest.mark.long) for name in WRITES]


@pytest.fixture(autouse=True)
def collected():
    """Collect objects that Orbax leaves after an error, under the filter of this module."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def unbroken(one_device, shallow, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    train_and_evaluate(tiny_config(), workdir)
    return workdir


def before(patch, where, name, call, act):
    """Patch `where.name` to call `act` before its call number `call`."""
    original, calls = getattr(where, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            act()
        return original(*args, **kwargs)

    patch.setattr(where, name, wrapped)


def assert_same_files(workdir, expected):
    """Check that two runs have the same state, log, pictures and files."""
    assert_same_end(workdir, expected, STEPS)
    names = [sorted(path.name for path in each.iterdir()) for each in (workdir, expected)]
    assert names[0] == names[1]
    pictures = [sorted((each / "pictures").iterdir()) for each in (workdir, expected)]
    assert [path.name for path in pictures[0]] == [path.name for path in pictures[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*pictures))
    kept = [sorted(path.name for path in (each / "checkpoints").iterdir()) for each in
            (workdir, expected)]  # fmt: skip
    assert kept[0] == kept[1]


@pytest.mark.parametrize("what", CASES)
def test_run_on_a_full_disk_ends_with_one_line_and_resumes_later(
    what, unbroken, tmp_path, monkeypatch
):
    where, name, call, words = WRITES[what]
    with small_disk(tmp_path / "disk", megabytes=32) as disk:
        workdir = disk / "run"
        with monkeypatch.context() as patch:
            before(patch, where, name, call, lambda: fill(disk))
            with pytest.raises(UserError) as caught:
                train_and_evaluate(tiny_config(), workdir)
        assert words in str(caught.value) and str(workdir) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        empty(disk)
        train_and_evaluate(tiny_config(), workdir)
        assert_same_files(workdir, unbroken)


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("metrics.jsonl", marks=pytest.mark.long),
        pytest.param("a later checkpoint", marks=pytest.mark.long),
        pytest.param("a picture", marks=pytest.mark.long),
    ],
)
def test_run_on_a_disk_that_becomes_read_only_ends_with_one_line_and_resumes_later(
    what, unbroken, tmp_path, monkeypatch
):
    where, name, call, _ = WRITES[what]
    with small_disk(tmp_path / "disk", megabytes=32) as disk:
        workdir = disk / "run"

        def freeze():
            # Open files prevent a remount; a read-only bind mount acts like a failing disk.
            mount("--bind", disk, disk)
            mount("-o", "remount,bind,ro", disk)

        with monkeypatch.context() as patch:
            before(patch, where, name, call, freeze)
            with pytest.raises(UserError) as caught:
                train_and_evaluate(tiny_config(), workdir)
        assert str(workdir) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        with pytest.raises(UserError, match="Read-only file system"):
            train_and_evaluate(tiny_config(), workdir)  # still read-only
        mount("-o", "remount,bind,rw", disk)
        train_and_evaluate(tiny_config(), workdir)
        assert_same_files(workdir, unbroken)


def leaves_no_part(folder):
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_convert_on_a_full_disk_leaves_no_file(unbroken, tmp_path, capsys):
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        fill(disk)
        assert cli.main(["convert", str(unbroken), str(disk / "out" / "weights.npz")]) == 2
        assert "weights.npz: cannot be written to: No space left" in capsys.readouterr().err
        empty(disk)
        (disk / "out").mkdir(exist_ok=True)
        assert cli.main(["convert", str(unbroken), str(disk / "out" / "weights.npz")]) == 0
        assert leaves_no_part(disk) == ["weights.npz"]


def test_predict_on_a_full_disk_leaves_no_partial_file(unbroken, tmp_path, capsys):
    picture = str(unbroken / "pictures" / "val_0000008.jpg")
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        fill(disk)
        command = ["predict", picture, "--workdir", str(unbroken), "--out", str(disk / "out")]
        assert cli.main(command) == 2
        assert "cannot be written to: No space left" in capsys.readouterr().err
        empty(disk)
        assert leaves_no_part(disk) == []
        assert cli.main(command) == 0
        assert sorted(leaves_no_part(disk)) == ["detections.json", "val_0000008.jpg"]


@pytest.mark.parametrize("name", ["metrics.json", "detections.json", "detections.jpg"])
def test_evaluate_on_a_full_disk_leaves_no_partial_file(name, unbroken, tmp_path, monkeypatch):
    config = tiny_config()
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        real = files.atomic_write

        def filling(path):
            if path.name == name:
                fill(disk)
            return real(path)

        with monkeypatch.context() as patch:
            patch.setattr(files, "atomic_write", filling)
            patch.setattr("nanodet_jax.visualize.atomic_write", filling)
            with pytest.raises(UserError, match=f"{name}: cannot be written to: No space left"):
                evaluate.evaluate(config, unbroken, disk / "out")
        empty(disk)
        assert all(json.loads(path.read_text()) is not None for path in disk.rglob("*.json"))
        assert not list(disk.rglob("*.tmp")) and not list(disk.rglob(".*"))
        evaluate.evaluate(config, unbroken, disk / "out")
        assert sorted(leaves_no_part(disk)) == ["detections.jpg", "detections.json", "metrics.json"]
