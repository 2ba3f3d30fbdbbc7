"""From exports of labeling programs to a trained and evaluated run, on the command line."""

import json

import jax
import pytest

from nanodet_jax.cli.main import main
from nanodet_jax.data.sources.shapes import ShapesSource
from tests.formats import write_label_studio_yolo, write_roboflow_coco
from tests.runs import TINY_DATA

RECORDS = list(ShapesSource("train", 64, 20))


@pytest.fixture
def command(shallow, monkeypatch, capsys, tmp_path):
    """Run a command with a tiny network; return its exit code and output."""
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.chdir(tmp_path)

    def call(name, *flags):
        steps = ["--config.training.steps=2", "--config.training.log_every=1"]
        tiny = [] if name == "doctor" else [f"--workdir={tmp_path / 'run'}"]
        code = main([name, "--config=shapes", *TINY_DATA, *steps, *tiny, *flags])
        output, error = capsys.readouterr()
        return code, output + error

    return call


@pytest.mark.long
def test_exports_of_two_programs_train_together_on_a_split(command, tmp_path):
    write_roboflow_coco(tmp_path / "roboflow", RECORDS[:10])
    write_label_studio_yolo(tmp_path / "studio", RECORDS[10:])
    sources = "--config.data.sources=coco:roboflow,yolo:studio"
    code, output = command("train", sources)
    assert code == 2
    assert "no COCO annotations for val in this folder" in output
    assert "--config.data.val_fraction=0.1" in output
    flags = [sources, "--config.data.val_fraction=0.2"]
    code, output = command("train", *flags, "--config.data.merge=circel:ring")
    assert code == 2
    assert "'circel' does not occur in the data" in output and "did you mean 'circle'?" in output
    flags += ["--config.data.merge=circle:ring", "--config.data.classes=star,ring,square,triangle"]
    code, output = command("doctor", *flags)
    assert "16 training and 4 validation images, 4 classes" in output
    assert not (tmp_path / "run").exists()
    code, output = command("train", *flags)
    assert code == 0
    assert "16 training and 4 validation images, 4 classes" in output
    assert "note: super-categories without boxes, left out of the classes in train: 1" in output
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert about["class_names"] == ["star", "ring", "square", "triangle"]
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert len(split["validation"]) == 4
    code, output = command("eval", *flags)
    assert code == 0
    metrics = json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())
    assert list(metrics["per_class"]) == ["star", "ring", "square", "triangle"]


@pytest.mark.slow
def test_data_without_validation_trains_to_a_last_checkpoint(command, tmp_path):
    write_label_studio_yolo(tmp_path / "studio", RECORDS[:16])
    flags = ["--config.data.format=yolo", "--config.data.root=studio"]
    code, output = command("train", *flags, "--config.data.val=none")
    assert code == 0
    assert "config.data.val=none: no evaluation; the last checkpoint is the result" in output
    assert "Average precision" not in output
    assert output.endswith("checkpoints, metrics.jsonl and pictures of a training batch\n")
    code, output = command("eval", *flags, "--config.data.val=none")
    assert code == 2
    assert "config.data.val=none: there are no validation images; set" in output
    # The run was trained on all images, and so on these.
    code, output = command("eval", *flags, "--config.data.val_fraction=0.25")
    assert code == 0
    assert "note: 4 of the 4 images have the name of a training image of " in output
    assert "if they are the same images, the AP is too high" in output
