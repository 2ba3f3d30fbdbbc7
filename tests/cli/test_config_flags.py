"""`--config.FIELD=VALUE`: values of every type, and the errors for wrong ones."""

import dataclasses

import pytest

from nanodet_jax.cli.config_flags import apply_overrides, load_config, split_overrides
from nanodet_jax.cli.flag_values import format_value, parse_value
from nanodet_jax.config import Config
from nanodet_jax.config.section import fields_of
from nanodet_jax.configs import coco
from nanodet_jax.errors import UserError

# Flags, separated by blanks, and the whole error.
WRONG = {
    "--config.training.epochs=abc": "--config.training.epochs='abc': expected int, such as "
    "--config.training.epochs=1",
    "--config.training.epochs=1.5": "--config.training.epochs='1.5': expected int, such as "
    "--config.training.epochs=1",
    "--config.training.epochs=": "--config.training.epochs='': expected int, such as "
    "--config.training.epochs=1",
    "--config.training.epochs": "--config.training.epochs: expects a value, such as "
    "--config.training.epochs=1",
    "--config.data.root --workdir=x": "--config.data.root: expects a value, such as "
    "--config.data.root=VALUE",
    "--config.data.root --config.name=x": "--config.data.root: expects a value, such as "
    "--config.data.root=VALUE",
    "--config.training.learning_rate=fast": "--config.training.learning_rate='fast': expected "
    "float, such as --config.training.learning_rate=0.01",
    "--config.data.keep_ratio=maybe": "--config.data.keep_ratio='maybe': expected true or false, "
    "such as --config.data.keep_ratio=false",
    "--noconfig.data.keep_ratio=true": "--noconfig.data.keep_ratio: takes no value; use "
    "--noconfig.data.keep_ratio or --config.data.keep_ratio=false",
    "--noconfig.training.epochs": "--noconfig.training.epochs: works only for fields that are true "
    "or false; use --config.training.epochs=1",
    "--config.input_size=64": "--config.input_size='64': expected 2 values, separated by commas, "
    "such as --config.input_size=320,320",
    "--config.input_size=1,2,3": "--config.input_size='1,2,3': expected 2 values, separated by "
    "commas, such as --config.input_size=320,320",
    "--config.input_size=64.5,64": "--config.input_size='64.5,64': expected int, such as "
    "--config.input_size=320,320",
    "--config.training.milestones=a": "--config.training.milestones='a': expected int",
    "--config.loss=3": "--config.loss: is a section; use one of its fields: quality_focal, "
    "distribution_focal, giou",
    "--config.training.stepz=3": "--config.training.stepz: unknown field; did you mean "
    "--config.training.steps?",
    "--config.batch_size=8": "--config.batch_size: unknown field; did you mean "
    "--config.data.batch_size?",
    "--config.traning.epochs=8": "--config.traning.epochs: unknown field; did you mean "
    "--config.training.epochs?",
    "--config.model.name=8": "--config.model.name: unknown field; did you mean --config.name or "
    "--config.data.name or --config.assigner.name?",
    "--config.name.x=8": "--config.name.x: unknown field; known fields are name, input_size, "
    "precision, data, augment, model, assigner, compat, loss, training, distributed",
    "--config.=8": "--config.: unknown field; known fields are name, input_size, precision, data, "
    "augment, model, assigner, compat, loss, training, distributed",
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flag_gives_its_name_what_was_expected_and_an_example(flags):
    _, overrides = split_overrides(flags.split())
    with pytest.raises(UserError) as caught:
        apply_overrides(Config(), overrides)
    assert str(caught.value) == WRONG[flags]


def test_error_of_a_flag_does_not_name_the_config_but_that_of_a_value_does():
    with pytest.raises(UserError, match=r"^--config.training.epochs='x': expected int"):
        load_config("voc", ["--config.training.epochs=x"])
    with pytest.raises(UserError, match=r"^voc: config.training.epochs=0: must be positive$"):
        load_config("voc", ["--config.training.epochs=0"])


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("0x10", int, 16),
        ("-3", int, -3),
        (" 2 ", int, 2),
        ("1e-3", float, 0.001),
        ("FALSE", bool, False),
        ("t", bool, True),
        ("3,5", tuple[int, ...], (3, 5)),
        ("(3, 5)", tuple[int, ...], (3, 5)),
        ("[3]", tuple[int, ...], (3,)),
        ("3,", tuple[int, ...], (3,)),
        ("", tuple[int, ...], ()),
        ("()", tuple[int, ...], ()),
        ("0.5,2", tuple[float, float], (0.5, 2.0)),
        ("cat,traffic light", tuple[str, ...], ("cat", "traffic light")),
        ('"cat, big",dog', tuple[str, ...], ("cat, big", "dog")),
        ("'cat','dog'", tuple[str, ...], ("cat", "dog")),
        ("driver's cap,dog", tuple[str, ...], ("driver's cap", "dog")),
        ("12,07", tuple[str, ...], ("12", "07")),
        ("it's", str, "it's"),
    ],
)
def test_parse_value_reads_text_as_the_type_of_the_field(text, hint, value):
    parsed = parse_value(text, hint)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), ((), ""), ("", ""), (("a b", 'c"d', "e,f"), '\'a b,"c""d","e,f"\'')],
)
def test_format_value_is_quoted_for_a_shell(value, text):
    assert format_value(value) == text


def test_every_field_of_a_config_survives_being_written_as_flags():
    config = coco.get_config("nanodet-plus-m-1.5x_416")
    config.data.classes = ("cat", "big, dog")
    flags = []
    for path, hint in fields_of(Config):
        value = config
        for name in path.split(".")[1:]:
            value = getattr(value, name)
        if not dataclasses.is_dataclass(hint):
            flags.append(f"--{path}={format_value(value)}".replace("'", ""))
    assert apply_overrides(Config(), flags) == config


def test_path_that_would_not_be_read_is_an_error():
    sources = "--config.data.sources=voc:a,yolo:b"
    with pytest.raises(UserError) as caught:
        load_config("voc", [sources, "--config.data.root=c"])
    assert str(caught.value) == (
        "--config.data.root: is not read, because config.data.sources is set; use "
        "--config.data.sources=FORMAT:FOLDER, or add --config.data.sources="
    )
    root = "--config.data.root=c"
    with pytest.raises(UserError) as caught:
        load_config("coco", [root, "--config.data.val_images=d"])
    assert str(caught.value) == (
        "--config.data.val_images: is not read, because config.data.root is set; add "
        "--config.data.root="
    )
    # The coco config has paths of its own, which config.data.root replaces.
    assert load_config("coco", [root]).data.root == "c"
    assert load_config("voc", [sources, "--config.data.root="]).data.sources == ("voc:a", "yolo:b")


def test_last_of_repeated_flags_counts_and_the_config_is_not_changed():
    config = Config()
    flags = ["--config.training.epochs=2", "--config.training.epochs=3", "--config.data.keep_ratio"]
    changed = apply_overrides(config, flags)
    assert (changed.training.epochs, changed.data.keep_ratio) == (3, True)
    assert config == Config()
