"""The `nanodet-jax` command: how it reads its arguments and reports errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanodet_jax.cli import doctor, eval, info, predict, train
from nanodet_jax.cli.config_flags import load_config, shipped_names, split_overrides
from nanodet_jax.cli.main import COMMANDS, main

REPO = Path(__file__).parents[2]


@pytest.fixture
def config_of(monkeypatch, tmp_path):
    """Run a command in an empty folder until it loads its config, and return the config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()

    def call(*arguments):
        loaded = []

        def record(name, overrides):
            loaded.append(load_config(name, overrides))
            raise KeyboardInterrupt

        for command in (doctor, eval, info, train):
            monkeypatch.setattr(command, "load_config", record)
        assert main([str(argument) for argument in arguments]) == 130
        [config] = loaded
        return config

    return call


@pytest.mark.parametrize("command", ["train", "eval --workdir=run", "doctor", "info"])
def test_config_is_given_by_name_in_any_folder(config_of, command):
    assert config_of(*command.split(), "--config", "voc:nanodet-plus-m").name == "voc-plus"
    file = REPO / "configs" / "yolo.py"
    assert config_of(*command.split(), f"--config={file}").data.format == "yolo"


@pytest.mark.parametrize("command", ["train", "eval --workdir=run", "doctor", "info"])
def test_override_takes_a_value_with_and_without_equals_sign(config_of, command):
    config = config_of(
        *command.split(),
        *("--config.data.root", "folder", "--config.data.max_boxes=7", "--config.data.keep_ratio"),
        *("--config", "voc", "--noconfig.compat.keep_lost_boxes"),
    )
    assert (config.data.root, config.data.max_boxes) == ("folder", 7)
    assert config.data.keep_ratio and not config.compat.keep_lost_boxes


@pytest.mark.parametrize("command", ["doctor", "info"])
def test_config_without_a_flag_is_accepted(config_of, command):
    config = config_of(command, "voc", "--config.data.root", "folder")
    assert (config.name, config.data.root) == ("voc", "folder")


@pytest.mark.parametrize("command", ["train", "eval --weights=x.pth"])
def test_default_config_is_shapes(config_of, tmp_path, command):
    (tmp_path / "x.pth").touch()
    assert config_of(*command.split()).name == "shapes"


def test_flagfile_contains_more_flags(config_of, tmp_path):
    (tmp_path / "flags").write_text("--config=voc\n--config.training.epochs=3\n")
    config = config_of("train", "--flagfile=flags")
    assert (config.name, config.training.epochs) == ("voc", 3)


def test_split_overrides_keeps_the_order_of_both_groups():
    argv = ["eval", "--config.data.root", "", "--out", "x", "--config.model.extra_level", "-v", "0"]
    others, overrides = split_overrides(argv)
    assert others == ["eval", "--out", "x", "-v", "0"]
    assert overrides == ["--config.data.root", "", "--config.model.extra_level"]


def test_file_of_the_name_of_a_shipped_config_needs_a_path(config_of, tmp_path):
    (tmp_path / "voc").write_text(
        "from nanodet_jax.config import Config\ndef get_config(): return Config(name='mine')"
    )
    assert config_of("info", "--config=voc").name == "voc"
    assert config_of("info", "--config=./voc").name == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "the following arguments are required: COMMAND; see nanodet-jax --help"),
        (
            "fly",
            "fly: no such command; the commands are train, eval, predict, doctor, config",
        ),
        ("trian", "trian: no such command; did you mean train? the commands are train, eval"),
        ("evla --workdir=x", "evla: no such command; did you mean eval?"),
        (
            "train --workdri=x",
            "--workdri=x: nanodet-jax train takes no such argument; did you mean "
            "--workdir? see nanodet-jax train --help",
        ),
        ("train --epochs=3", "did you mean --config.training.epochs? see"),
        ("train --batch_size 8", "did you mean --config.data.batch_size? see"),
        ("train data.batch_size=8", "did you mean --config.data.batch_size? see"),
        ("train voc", "voc: nanodet-jax train takes no such argument; did you mean --config voc?"),
        ("convert a b --epochs=3", "takes no such argument; see nanodet-jax convert --help"),
        ("doctor", "use --config NAME_OR_FILE[:VARIANT]"),
        ("info --conf=voc", "nanodet-jax info takes no such argument; did you mean --config?"),
        ("convert --config.name=x a b", "--config.name=x: nanodet-jax convert takes no config"),
        ("train --config=fly", "fly: no such config; use a file, or one of coco, custom"),
        (
            "train --config=vok",
            "vok: no such config; did you mean voc? use a file, or one of coco",
        ),
        (
            "train --config=",
            "--config=: names no config; use a file, or one of coco, custom, shapes",
        ),
        (
            "train --config=shapes:big",
            "shapes:big: unknown variant 'big'; use one of nanodet-m-tiny, ",
        ),
        (
            "train --flagfile=nope",
            "error: --flagfile=nope: cannot be read: No such file or directory",
        ),
        ("train --flagfile", "error: --flagfile: expects a file, as in --flagfile=FILE"),
        ("eval --evaluator=x --workdir=run", "argument --evaluator: invalid choice: 'x'"),
    ],
)
def test_bad_arguments_give_one_line_and_code_2(capsys, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    assert main(given.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_names_its_options(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--verbosity" in text
    if command in ("train", "eval", "doctor", "config", "info"):
        assert "--config CONFIG" in text and "docs/config.md" in text
        assert f"names are {', '.join(shipped_names())}" in text


def test_help_of_train_names_every_field(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "fields of --config.loss: quality_focal, distribution_focal, giou" in text
    assert "fields of --config.training.lr_multipliers: backbone, neck, head, guidance" in text
    assert "`nanodet-jax config` describes all fields" in text


def test_shipped_names_are_the_files_in_configs():
    assert shipped_names() == sorted(path.stem for path in (REPO / "configs").glob("*.py"))


def test_eval_reads_the_old_name_of_evaluator_with_a_note(monkeypatch, capsys, tmp_path):
    chosen = []
    monkeypatch.setattr(eval, "evaluate", lambda *given: chosen.append(given[3]))
    monkeypatch.setattr(eval, "format_table", lambda _: "")
    for flag in ("--judge", "--evaluator"):
        assert (
            main(
                [
                    "eval",
                    "--config=shapes",
                    "--weights=w.npz",
                    f"--out={tmp_path}",
                    f"{flag}=hotcoco",
                ]
            )
            == 0
        )
    assert chosen == ["hotcoco"] * 2
    assert capsys.readouterr().out.count("note: --judge is now called --evaluator\n") == 1


def test_operating_system_error_gives_one_line_and_code_2(monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device", "file")

    monkeypatch.setattr(train, "train_and_evaluate", fail)
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "error: file: No space left on device\n"


def test_memory_error_gives_one_line_and_code_2(monkeypatch, capsys):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(train, "train_and_evaluate", fail)
    assert main(["train"]) == 2
    expected = (
        "error: out of memory on this machine; close other programs, or process less data at once\n"
    )
    assert capsys.readouterr().err == expected


def test_error_in_the_program_is_not_hidden(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(predict, "list_images", fail)
    with pytest.raises(ZeroDivisionError):
        main(["predict", "x", "--weights=w.npz"])


@pytest.mark.parametrize("program", ["train.py", "eval.py", "-m nanodet_jax info"])
def test_script_prints_help(program):
    done = subprocess.run(
        [sys.executable, *program.split(), "--help"],
        capture_output=True, text=True, cwd=REPO, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0 and "--config CONFIG" in done.stdout


def test_info_applies_overrides(capsys):
    assert main(["info", "voc", "--config.input_size=64,96"]) == 0
    assert capsys.readouterr().out.startswith("voc: one image of 64 x 96 pixels")


def test_doctor_reports_problems_with_code_1(capsys, tmp_path):
    assert main(["doctor", "--config=voc", f"--config.data.root={tmp_path / 'nope'}"]) == 1
    assert str(tmp_path / "nope") in capsys.readouterr().out
