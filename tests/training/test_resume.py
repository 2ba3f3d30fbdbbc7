"""Resuming a run with a different config or data: what is refused, printed, written and trained."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from configs import voc
from nanodet_jax import train_and_evaluate
from nanodet_jax.config import Config
from nanodet_jax.data.pipeline import images_of_step
from nanodet_jax.data.run_length import run_length
from nanodet_jax.errors import UserError
from nanodet_jax.evaluation import evaluate
from nanodet_jax.training import build
from nanodet_jax.training.history import Leg, read_history
from nanodet_jax.training.workdir import PreviousLeg, offset_after
from tests.builders import tiny_config, voc_xml, write_image
from tests.runs import journal
from tests.training.test_loop import NO_EVALUATION, fake_step

IMAGES = 16


@pytest.fixture(autouse=True)
def counting(monkeypatch):
    """Replace the step with one that only counts, and the evaluation with one without results."""
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(build, "make_adjustable_step", fake_step(1.0))
    monkeypatch.setattr(evaluate, "run_evaluation", lambda *_, **__: NO_EVALUATION)
    monkeypatch.setattr(evaluate, "draw_examples", lambda *_: np.zeros((8, 8, 3), np.uint8))


def config_of(epochs=2, batch_size=4, rate=2e-3, **training) -> Config:
    """Return the config of a run on 16 images."""
    config = tiny_config(steps=0)
    config.data.train_size, config.data.batch_size = IMAGES, batch_size
    config.training = replace(
        config.training, epochs=epochs, learning_rate=rate, warmup_steps=0, **training
    )
    return config


def files(workdir):
    """Return the content of all files except the lock."""
    return {path: path.read_bytes() for path in workdir.rglob("*")
            if path.is_file() and path.name != "lock"}  # fmt: skip


def test_legs_with_other_settings_are_recorded_and_told(tmp_path, capsys):
    train_and_evaluate(config_of(epochs=1), tmp_path)
    capsys.readouterr()
    train_and_evaluate(config_of(epochs=3, batch_size=8, rate=1e-3), tmp_path)
    said = capsys.readouterr().out
    told = said[said.index("changed since the last leg of this run:") :].splitlines()
    assert told[1:4] == [
        "  config.data.batch_size: 4 -> 8",
        "  config.training.epochs: 1 -> 3",
        "  config.training.learning_rate: 0.002 -> 0.001",
    ]
    first, second = read_history(tmp_path)
    assert (first["start_step"], first["end_step"], first["reason"]) == (0, 4, "finished")
    assert (second["start_step"], second["end_step"], second["reason"]) == (4, 8, "finished")
    assert first["changes"] == {}
    assert second["changes"]["config.data.batch_size"] == [4, 8]
    assert first["data"] == second["data"]
    assert first["data"]["train"] == IMAGES
    assert first["command"] and first["started"] <= first["ended"] <= second["started"]
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["leg"] == {key: second[key] for key in about["leg"]}
    assert about["config"]["training"]["learning_rate"] == 1e-3
    assert json.loads((tmp_path / "config.json").read_text()) == about["config"]
    steps = [(line["step"], line["epoch"]) for line in journal(tmp_path) if line["kind"] == "train"]
    assert steps == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3), (8, 3)]


def test_same_command_tells_no_change(tmp_path, capsys):
    train_and_evaluate(config_of(epochs=1), tmp_path)
    train_and_evaluate(config_of(epochs=1, more_epochs=1), tmp_path)
    said = capsys.readouterr().out
    assert said.count("changed since") == 1
    assert "config.training.more_epochs: 0 -> 1" in said
    train_and_evaluate(config_of(epochs=1, more_epochs=1), tmp_path)
    assert "raise --config.training.more_epochs=1: it counts all epochs" in capsys.readouterr().out


@pytest.mark.parametrize("epochs", [1, 2])
def test_finished_run_is_left_as_it_is_and_says_how_to_train_longer(tmp_path, capsys, epochs):
    metrics = train_and_evaluate(config_of(epochs=2), tmp_path)
    before = files(tmp_path)
    capsys.readouterr()
    assert train_and_evaluate(config_of(epochs=epochs, rate=1.0), tmp_path) == metrics
    said = capsys.readouterr().out
    assert f"already finished at step 8 of {4 * epochs}; nothing is changed" in said
    assert "--config.training.more_epochs=N: it adds N epochs after the end of the schedule" in said
    assert "--config.training.epochs: the learning rate first rises again" in said
    assert files(tmp_path) == before


def test_more_epochs_extend_a_finished_run(tmp_path):
    train_and_evaluate(config_of(epochs=2), tmp_path)
    train_and_evaluate(config_of(epochs=2, more_epochs=3), tmp_path)
    assert [leg["end_step"] for leg in read_history(tmp_path)] == [8, 20]
    length = run_length(config_of(epochs=2, more_epochs=3), IMAGES)
    assert (length.total_steps, length.epochs, length.schedule_epochs) == (20, 5, 2)


def test_run_that_takes_no_step_writes_no_description(tmp_path, monkeypatch):
    train_and_evaluate(config_of(epochs=1), tmp_path)
    described = {name: (tmp_path / name).read_bytes() for name in
                 ("about.json", "config.json", "data.json", "history.jsonl")}  # fmt: skip

    def fail(*_, **__):
        raise RuntimeError("no memory for the program")

    monkeypatch.setattr(build, "make_adjustable_step", lambda **_: fail)
    with pytest.raises(RuntimeError, match="no memory"):
        train_and_evaluate(config_of(epochs=2, rate=1.0), tmp_path)
    assert described == {name: (tmp_path / name).read_bytes() for name in described}


def test_leg_that_fails_or_stops_says_so(tmp_path, monkeypatch):
    config = config_of(epochs=1, max_skipped=3)
    monkeypatch.setattr(build, "make_adjustable_step", fake_step(np.inf))
    with pytest.raises(UserError, match="3 steps in a row"):
        train_and_evaluate(config, tmp_path)
    (leg,) = read_history(tmp_path)
    assert leg["end_step"] == 3
    assert leg["reason"].startswith(
        "failed: the loss, a gradient or a batch statistic was not finite in 3 steps in a row"
    )


def test_other_input_size_is_refused_unless_new_data_is_allowed(tmp_path, capsys):
    train_and_evaluate(config_of(epochs=1), tmp_path)
    before = files(tmp_path)
    config = config_of(epochs=2)
    config.input_size = (96, 96)
    with pytest.raises(
        UserError,
        match=r"holds a run with config\.input_size \(64, 64\), not \(96, 96\); .*"
        r"--config\.training\.resume=new_data to resume with the new data",
    ):
        train_and_evaluate(config, tmp_path)
    assert files(tmp_path) == before
    config.training.resume = "new_data"
    train_and_evaluate(config, tmp_path)
    assert "  config.input_size: (64, 64) -> (96, 96)" in capsys.readouterr().out


def write_voc(root, train, val=("v1", "v2")):
    """Write a dataset of one class with these images."""
    for split, names in (("train", train), ("val", val)):
        for name in names:
            write_image(root / split / "images" / f"{name}.jpg", (100, 80))
            path = root / split / "annotations" / f"{name}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(voc_xml(("cat", 10, 10, 50, 60)))
    return root


def voc_config(root, epochs):
    config = config_of(epochs=epochs, batch_size=2)
    config.data = replace(voc.get_config().data, root=str(root), batch_size=2)
    return config


def test_images_that_came_and_went_are_told(tmp_path, capsys):
    workdir = tmp_path / "run"
    train_and_evaluate(voc_config(write_voc(tmp_path / "old", "abcd"), 1), workdir)
    capsys.readouterr()
    train_and_evaluate(voc_config(write_voc(tmp_path / "new", "bcdefg"), 2), workdir)
    said = capsys.readouterr().out
    assert (
        "  training images: 3 added (e.jpg, f.jpg, g.jpg), 1 removed (a.jpg); a renamed image "
        "counts as both"
    ) in said
    assert "validation images:" not in said
    first, second = read_history(workdir)
    assert first["data"]["digest"] != second["data"]["digest"]
    assert (second["start_step"], second["end_step"]) == (2, 5)  # 3 steps are the second epoch


def test_other_dataset_is_refused_unless_it_is_allowed(tmp_path):
    workdir = tmp_path / "run"
    train_and_evaluate(voc_config(write_voc(tmp_path / "old", "abcd"), 1), workdir)
    before = files(workdir)
    config = voc_config(write_voc(tmp_path / "new", "dwxyz"), 2)
    with pytest.raises(
        UserError,
        match=r"on different data: 1 of its 4 training images are among the 5 images of this",
    ):
        train_and_evaluate(config, workdir)
    assert files(workdir) == before
    config.training.resume = "new_data"
    train_and_evaluate(config, workdir)
    assert len(read_history(workdir)) == 2


def previous_of(batch_size, offset=0, images=IMAGES):
    config = config_of(batch_size=batch_size)
    return PreviousLeg(config, (), images // batch_size, offset, None)


@pytest.mark.parametrize(
    "step, before, after, expected",
    [
        (6, 4, 4, 6),  # the same batch
        (6, 4, 8, 3),  # 24 images done
        (4, 4, 8, 2),  # at the end of an epoch
        (3, 8, 4, 6),
        (5, 4, 16, 1),  # the epoch of one step starts again
        (7, 4, 8, 3),  # 12 of 16 images done: the last 4 images of a batch of 8 repeat
    ],
)
def test_position_is_kept_in_images_when_the_batch_changes(step, before, after, expected):
    config = config_of(batch_size=after)
    offset = offset_after(previous_of(before), config, step, IMAGES // after)
    assert step + offset == expected


def test_position_survives_several_changes_of_the_batch():
    offset = offset_after(previous_of(4), config_of(batch_size=8), 6, 2)
    assert 6 + offset == 3
    offset = offset_after(previous_of(8, offset), config_of(batch_size=4), 7, 4)
    assert 7 + offset == 8


def test_images_of_a_resumed_epoch_are_those_that_are_left():
    source = [type("Image", (), {"name": str(index)}) for index in range(IMAGES)]
    small, large = config_of(batch_size=4), config_of(batch_size=8)
    done = [name for step in (1, 2) for name in images_of_step(source, small, step)]
    position = 2 + offset_after(previous_of(4), large, 2, 2)
    left = images_of_step(source, large, position + 1)
    assert sorted(done + left) == sorted(str(index) for index in range(IMAGES))


def test_schedule_and_epochs_follow_the_position(tmp_path):
    train_and_evaluate(config_of(epochs=1), tmp_path)
    config = config_of(epochs=4, batch_size=8, schedule="multistep", milestones=(2,))
    config.training.keep_every = 1
    train_and_evaluate(config, tmp_path)
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == [4, 6, 8, 10]  # every epoch


def begin(workdir, step, **facts):
    """Begin a leg that never ends."""
    Leg(workdir, {}, {"config": {}}, step, facts).begin()


def test_killed_leg_gets_its_end_from_the_next(tmp_path):
    begin(tmp_path, 0)
    begin(tmp_path, 12)
    first, second = read_history(tmp_path)
    assert (first["end_step"], first["reason"], first["ended"]) == (12, "killed", None)
    assert second["leg"] == 2 and "end_step" not in second


def test_leg_killed_between_its_two_files_is_not_lost(tmp_path):
    begin(tmp_path, 0)
    kept = (tmp_path / "history.jsonl").read_bytes()
    begin(tmp_path, 5, offset=7)
    (tmp_path / "history.jsonl").write_bytes(kept)  # about.json describes the second leg
    begin(tmp_path, 9)
    legs = read_history(tmp_path)
    assert [leg["start_step"] for leg in legs] == [0, 5, 9]
    assert [leg.get("end_step") for leg in legs] == [5, 9, None]
    assert legs[1]["offset"] == 7


@pytest.mark.parametrize("cut", [b'{"event": "start", "leg": 2, "sta', b"\xff\xfe", b"[]\n", b"1"])
def test_line_that_a_crash_cut_off_is_skipped(tmp_path, cut):
    begin(tmp_path, 0)
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(cut)
    begin(tmp_path, 3)
    assert [leg["start_step"] for leg in read_history(tmp_path)] == [0, 3]
