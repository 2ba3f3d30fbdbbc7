"""Damage in `metrics.jsonl` and `about.json`: it is reported in one line, and the run continues."""

import json
import shutil

import pytest

from nanodet_jax.data.open_source import open_source
from nanodet_jax.errors import UserError
from nanodet_jax.io.weights import ABOUT, load_description
from nanodet_jax.training.build import resolve
from nanodet_jax.training.metric_logger import MetricLogger
from nanodet_jax.training.workdir import prepare_workdir
from tests.training.test_loop import tiny_config

DAMAGED = {
    "a byte that is not UTF-8": b'{"kind": "train", "step": 1, "loss": "\xff"}\n',
    "half a line": b'{"kind": "train", "st\n',
    "no object": b'["train", 1]\n',
    "no step": b'{"kind": "train"}\n',
    "a step that is not a number": b'{"kind": "train", "step": "1"}\n',
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
def test_damaged_line_is_removed_and_counted(tmp_path, capsys, damage):
    path = tmp_path / "metrics.jsonl"
    before, after = line("train", 1), line("eval", 2)
    whole = b"" if damage == "no end of line" else after
    path.write_bytes(before + DAMAGED[damage] + whole)
    MetricLogger(tmp_path, start_step=2, total_steps=4).close()
    assert path.read_bytes() == before + whole
    assert f"{path}: removed 1 damaged line(s)" in capsys.readouterr().out


def test_valid_log_is_unchanged_and_nothing_is_printed(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    kept = line("train", 1) + line("train", 2) + line("eval", 2)
    path.write_bytes(kept + line("train", 3) + line("eval", 4))
    MetricLogger(tmp_path, start_step=2, total_steps=4).close()
    assert path.read_bytes() == kept and capsys.readouterr().out == ""
    MetricLogger(tmp_path, start_step=2, total_steps=4, start_evaluated=False).close()
    assert path.read_bytes() == line("train", 1) + line("train", 2)


def test_log_that_is_a_folder_is_an_error_with_its_path(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(
        UserError, match=r"metrics\.jsonl: is not a regular file; move it elsewhere"
    ):
        MetricLogger(tmp_path, start_step=0, total_steps=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepare a workdir with about.json, and return it with its config and data."""
    workdir = tmp_path_factory.mktemp("prepared")
    config = tiny_config()
    source = open_source(config, "train")
    config = resolve(config, source, source)
    prepare_workdir(workdir, config, source)
    return workdir, config, source


@pytest.mark.parametrize(
    "damage", [b"\xff", b"", b"{", b"[1]", b"null", b'{"config": 1}', bytes(99)]
)
def test_damaged_description_is_rewritten(prepared, tmp_path, capsys, damage):
    workdir, config, source = prepared
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    about = tmp_path / ABOUT
    expected = about.read_bytes()
    about.write_bytes(damage + expected[:100] if damage == b"\xff" else damage)
    prepare_workdir(tmp_path, config, source)
    said = capsys.readouterr().out
    assert f"note: {about}" in said and "the file is written anew" in said
    assert about.read_bytes() == expected and load_description(about)[0] == config


def test_valid_description_of_another_network_stops_the_run(prepared, tmp_path):
    workdir, config, source = prepared
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    about = tmp_path / ABOUT
    about.write_text(about.read_text().replace('"channels": 32', '"channels": 64'))
    with pytest.raises(UserError, match=r"holds a run with config\.model"):
        prepare_workdir(tmp_path, config, source)
