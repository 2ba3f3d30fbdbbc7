"""Damage in `metrics.jsonl` and `about.json`: it is reported, and the run continues."""

import json
import shutil

import pytest

from nanodet_jax.data.class_map import class_names
from nanodet_jax.data.open_source import open_source
from nanodet_jax.errors import UserError
from nanodet_jax.io.weights import ABOUT, load_description
from nanodet_jax.training.history import Leg, read_history
from nanodet_jax.training.metric_logger import MetricLogger
from nanodet_jax.training.run_data import resolve
from nanodet_jax.training.workdir import description, image_names, previous_leg
from tests.builders import tiny_config

DAMAGED = {
    "a byte that is not UTF-8": b'{"kind": "train", "step": 1, "loss": "\xff"}\n',
    "half a line": b'{"kind": "train", "st\n',
    "no object": b'["train", 1]\n',
    "no step": b'{"kind": "train"}\n',
    "a step that is no number": b'{"kind": "train", "step": "1"}\n',
    "a step that is a boolean": b'{"kind": "train", "step": true}\n',
    "no kind": b'{"step": 1}\n',
    "a number of 5,000 digits": b'{"kind": "train", "step": ' + b"1" * 5000 + b"}\n",
    "deep nesting": b"[" * 100_000 + b"\n",
    "zeros": bytes(5000) + b"\n",
    "no end of line": b'{"kind": "train", "step": 1}',
}


def line(kind, step):
    return json.dumps({"kind": kind, "step": step}).encode() + b"\n"


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_log_line_is_removed_and_counted(tmp_path, capsys, damage):
    path = tmp_path / "metrics.jsonl"
    before, after = line("train", 1), line("eval", 2)
    whole = b"" if damage == "no end of line" else after
    path.write_bytes(before + DAMAGED[damage] + whole)
    MetricLogger(tmp_path, start_step=2, total_steps=4).close()
    assert path.read_bytes() == before + whole
    assert f"{path}: removed 1 damaged line(s)" in capsys.readouterr().out


def test_sound_log_is_kept_byte_for_byte_without_a_message(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    kept = line("train", 1) + line("train", 2) + line("eval", 2)
    path.write_bytes(kept + line("train", 3) + line("eval", 4))
    MetricLogger(tmp_path, start_step=2, total_steps=4).close()
    assert path.read_bytes() == kept and capsys.readouterr().out == ""
    MetricLogger(tmp_path, start_step=2, total_steps=4, start_evaluated=False).close()
    assert path.read_bytes() == line("train", 1) + line("train", 2)


def test_log_that_is_a_folder_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(
        UserError, match=r"metrics\.jsonl: is not a regular file; move this file elsewhere"
    ):
        MetricLogger(tmp_path, start_step=0, total_steps=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Workdir with the files that describe a leg, and its config."""
    workdir = tmp_path_factory.mktemp("prepared")
    config = tiny_config()
    source = open_source(config, "train")
    config = resolve(config, source, source)
    about = description(config, tuple(class_names(source)), workdir)
    names = image_names(source, None)
    facts = {"steps_per_epoch": 4, "offset": 0}
    Leg(workdir, {"data.json": names._asdict()}, about, 0, facts).begin()
    return workdir, config, names


@pytest.mark.parametrize(
    "damage", [b"\xff", b"", b"{", b"[1]", b"null", b'{"config": 1}', bytes(99)]
)
def test_damaged_description_does_not_stop_a_run(prepared, tmp_path, capsys, damage):
    workdir, _, _ = prepared
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    about = tmp_path / ABOUT
    content = about.read_bytes()
    about.write_bytes(damage + content[:100] if damage == b"\xff" else damage)
    assert previous_leg(tmp_path) is None
    said = capsys.readouterr().out
    assert f"note: {about}" in said and "the file will be rewritten" in said
    Leg(tmp_path, {}, json.loads(content), 4, {}).begin()
    assert [leg["start_step"] for leg in read_history(tmp_path)] == [0, 4]
    assert load_description(about) == load_description(workdir / ABOUT)


@pytest.mark.parametrize("damage", [b"\xff", b"", b"{", b"[1]", b'{"train": [1], "val": []}'])
def test_damaged_list_of_images_counts_as_unknown(prepared, tmp_path, damage):
    workdir, config, names = prepared
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    assert previous_leg(tmp_path).names == names
    (tmp_path / "data.json").write_bytes(damage)
    assert previous_leg(tmp_path).names is None
    assert previous_leg(tmp_path).config == config


def test_offset_that_is_no_integer_makes_the_description_damaged(prepared, tmp_path, capsys):
    workdir, _, _ = prepared
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    about = tmp_path / ABOUT
    about.write_text(about.read_text().replace('"offset": 0', '"offset": 1e99'))
    assert previous_leg(tmp_path) is None
    assert "steps_per_epoch and offset must be integers" in capsys.readouterr().out
