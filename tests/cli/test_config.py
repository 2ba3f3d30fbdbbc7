"""`nanodet-jax config`: the fields of a config with their values and meaning."""

import re

import pytest

from nanodet_jax.cli.main import main
from nanodet_jax.config import Config
from nanodet_jax.config.section import fields_of


@pytest.fixture
def printed(capsys, monkeypatch):
    """Run `nanodet-jax config`; return the printed text."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments):
        assert main(["config", *arguments]) == 0
        return capsys.readouterr().out

    return call


def test_config_without_a_name_prints_every_field_with_its_default_unmarked(printed):
    text = printed()
    flags = re.findall(r"^  --([\w.]+)=", text, re.M)
    sections = re.findall(r"^(config[\w.]*): ", text, re.M)
    assert sorted(flags + sections) == sorted(["config", *(name for name, _ in fields_of(Config))])
    assert "  --config.training.epochs=1\n      Passes over the training images.\n" in text
    assert "\n* " not in text


def test_config_of_a_name_marks_what_differs_from_the_default(printed):
    lines = printed("voc:nanodet-plus-m").splitlines()
    assert "* --config.name=voc-plus  (default: nanodet-m)" in lines
    necks = "pan, ghost_pan, tan, nanodet_fpn, fpn, lc_pan"
    assert f"* --config.model.neck=ghost_pan  (default: pan; choices: {necks})" in lines
    assert "  --config.data.root=" in lines


def test_config_shows_flags_of_the_same_command(printed):
    text = printed("voc", "--config.augment.scale=0.5,2", "--search=augment.scale")
    assert "* --config.augment.scale=0.5,2.0  (default: 1.0,1.0)\n" in text


def test_search_finds_names_and_meanings(printed):
    by_name = printed("--search", "MILESTONES")
    assert by_name.startswith("config.training: ") and by_name.count("--config.") == 1
    by_meaning = printed("--search", "stride 64")
    assert re.findall(r"--([\w.]+)=", by_meaning) == ["config.model.extra_level"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--search=leanring_rate"], "--search=leanring_rate: no field matches; did you mean "
                                     "--config.training.learning_rate?"),
        (["--search=xyzzy"], "--search=xyzzy: no field matches; omit it to see all fields"),
        (["vok"], "vok: no such config; did you mean voc? use a file, or one of coco, custom, "
                  "shapes, voc, yolo"),
    ],
)  # fmt: skip
def test_config_of_something_unknown_is_one_line(capsys, arguments, error):
    assert main(["config", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"
