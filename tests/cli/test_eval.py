"""The config that `nanodet-jax eval` uses: that of a run, of weights, or of `--config`."""

import pytest

from nanodet_jax.cli import eval
from nanodet_jax.cli.main import main
from nanodet_jax.config import Config, Model
from nanodet_jax.errors import UserError
from nanodet_jax.io.weights import ABOUT, Weights, describe, save_weights
from tests.builders import tiny_config


@pytest.fixture
def workdir(tmp_path):
    """A workdir that contains only its description, of a run on a COCO dataset."""
    config = Config("mine", input_size=(64, 96), model=Model(num_classes=2))
    config.data.val_images, config.data.val_annotations = "images", "val.json"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ABOUT).write_text(describe(config, ("cat", "dog")))
    return tmp_path / "run"


@pytest.fixture
def evaluated(monkeypatch):
    """Replace `evaluate`, and return the configs that it is called with."""
    used = []
    monkeypatch.setattr(eval, "evaluate", lambda config, *_: used.append(config))
    monkeypatch.setattr(eval, "format_table", lambda _: "")
    return used


def test_eval_of_a_run_uses_its_config_with_overrides(workdir, evaluated, capsys):
    flags = ("--config.data.val_images=elsewhere", "--config.data.batch_size=2")
    assert main(["eval", f"--workdir={workdir}", *flags]) == 0
    [config] = evaluated
    assert (config.name, config.input_size) == ("mine", (64, 96))
    assert (config.data.val_images, config.data.val_annotations) == ("elsewhere", "val.json")
    assert config.data.batch_size == 2
    said = capsys.readouterr().out
    assert said.startswith(f"using the config of {workdir}: mine, data in coco format\n")


def test_eval_of_a_run_on_several_sources_names_them_and_refuses_another_root(
    workdir, evaluated, capsys
):
    config = Config("mine", model=Model(num_classes=2))
    config.data.sources = ("voc:a", "yolo:b")
    (workdir / ABOUT).write_text(describe(config, ("cat", "dog")))
    assert main(["eval", f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().out.startswith(
        f"using the config of {workdir}: mine, voc:a and yolo:b\n"
    )
    assert main(["eval", f"--workdir={workdir}", "--config.data.root=c"]) == 2
    assert "--config.data.root: is not read" in capsys.readouterr().err
    assert len(evaluated) == 1


def test_config_flag_replaces_the_config_of_a_run(workdir, evaluated):
    assert main(["eval", f"--workdir={workdir}", "--config=shapes"]) == 0
    assert evaluated[0].name == "shapes"


def test_eval_of_an_npz_file_uses_its_config(tmp_path, monkeypatch, evaluated):
    monkeypatch.chdir(tmp_path)
    config = tiny_config()
    config.name, config.model.num_classes = "mine", 4
    save_weights("w.npz", Weights({}, config, ()))
    assert main(["eval", "--weights=w.npz"]) == 0
    assert evaluated == [config]


@pytest.mark.parametrize(
    ("existing", "flags"),
    [
        ([], "--config.data.val_images=PATH --config.data.val_annotations=PATH"),
        (["images"], "--config.data.val_annotations=PATH"),
    ],
)
def test_eval_names_the_fields_of_paths_that_no_longer_exist(
    workdir, tmp_path, monkeypatch, capsys, existing, flags
):
    monkeypatch.chdir(tmp_path)
    for name in existing:
        (tmp_path / name).mkdir()
    assert main(["eval", f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert error.endswith(
        f"; this path comes from the config of {workdir}: use {flags} if the data has moved, or "
        "run the command in the folder in which training was started\n"
    )


def test_other_errors_do_not_name_paths(workdir, monkeypatch, capsys):
    def fail(*_):
        raise UserError("the weights are damaged")

    monkeypatch.setattr(eval, "evaluate", fail)
    (workdir / "images").mkdir()
    flags = f"--config.data.val_images={workdir}", f"--config.data.val_annotations={workdir}"
    assert main(["eval", f"--workdir={workdir}", *flags]) == 2
    assert capsys.readouterr().err == "error: the weights are damaged\n"


def test_override_that_the_config_of_a_run_refuses_is_one_line(workdir, capsys):
    for flag, error in (
        ("--config.data.batch_size=0", "config.data.batch_size=0: must be positive"),
        ("--config.batch_size=2", "--config.batch_size: unknown field; did you mean "
                                  "--config.data.batch_size?"),
    ):  # fmt: skip
        assert main(["eval", f"--workdir={workdir}", flag]) == 2
        assert capsys.readouterr().err == f"error: {error}\n"


def test_config_of_weights_cannot_ask_for_unlimited_resources(tmp_path, evaluated):
    config = Config("theirs", model=Model(num_classes=2))
    config.data.max_megapixels, config.data.workers = 1e6, 10**6
    config.data.batch_size = config.data.val_size = 10**9
    (tmp_path / ABOUT).write_text(describe(config, ("cat", "dog")))
    assert main(["eval", f"--workdir={tmp_path}", "--config.data.workers=100"]) == 0
    data = evaluated[0].data
    assert (data.max_megapixels, data.workers) == (50, 100)
    assert (data.batch_size, data.val_size) == (256, 100_000)


def test_large_input_in_the_config_of_weights_must_be_confirmed(tmp_path, evaluated, capsys):
    config = Config("theirs", input_size=(4096, 64), model=Model(num_classes=2))
    (tmp_path / ABOUT).write_text(describe(config, ("cat", "dog")))
    assert main(["eval", f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: config.input_size=4096,64: sides over 2048 must be confirmed; if you "
        "trust the weights, use --config.input_size=4096,64\n"
    )
    assert main(["eval", f"--workdir={tmp_path}", "--config.input_size=4096,64"]) == 0
    assert evaluated[0].input_size == (4096, 64)
