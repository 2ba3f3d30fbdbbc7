"""Checks of config values: choices, bounds, and conditions across sections."""

import dataclasses
import typing
from pathlib import Path

import pytest

from nanodet_jax.cli.config_flags import load_config
from nanodet_jax.config import Config, Data, Distributed, Model, Training, check, from_json
from nanodet_jax.config.values import choices, join_choices
from nanodet_jax.errors import UserError

SHAPES = str(Path(__file__).parents[2] / "configs" / "shapes.py")


def fields_with_choices():
    """Yield (section, field, choices); the section of a field of `Config` itself is ""."""
    sections = {"": Config} | {
        name: hint
        for name, hint in typing.get_type_hints(Config).items()
        if dataclasses.is_dataclass(hint)
    }
    for section, cls in sections.items():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if allowed := choices(field, hints[field.name]):
                yield section, field.name, allowed


CHOICES = {".".join(filter(None, key)): allowed for *key, allowed in fields_with_choices()}


def test_closed_sets_are_found():
    assert set(CHOICES) == {
        "precision",
        "data.format",
        "data.cache",
        "data.augment",
        "data.resize",
        "data.val",
        "training.resume",
        "model.activation",
        "model.backbone",
        "model.backbone_activation",
        "model.channel_order",
        "model.head",
        "model.width",
        "model.neck",
        "assigner.name",
        "training.optimizer",
        "training.schedule",
    }


@pytest.mark.parametrize("name", CHOICES)
def test_flag_with_a_wrong_choice_names_field_and_choices(name):
    wrong = 0.7 if name == "model.width" else "x"
    expected = f"config.{name}={wrong!r}: must be one of {join_choices(CHOICES[name])}"
    with pytest.raises(UserError) as caught:
        load_config(SHAPES, [f"--config.{name}={wrong}"])
    assert str(caught.value) == f"{SHAPES}: {expected}"


@pytest.mark.parametrize("name", CHOICES)
def test_json_with_a_wrong_choice_names_field_and_choices(name):
    section, _, field = name.rpartition(".")
    text = f'{{"{field}": "x"}}'
    first = str(CHOICES[name][0]) or '""'
    with pytest.raises(UserError, match=f"^config.{name}='x': must be one of {first}, "):
        from_json(f'{{"{section}": {text}}}' if section else text)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in CHOICES for v in CHOICES[n]])
def test_flag_with_a_choice_is_parsed(name, value):
    needed = {
        "data.cache": ["--config.data.augment=device"],  # cache=device needs it
        "data.resize": [  # short_side needs the network of GFL
            "--config.model.backbone=resnet18",
            "--config.model.backbone_activation=relu",
            "--config.model.norm_eval=True",
            "--config.model.neck=fpn",
            "--config.model.head=simple_conv",
            "--config.model.width=1",
            "--config.augment.translate=0",
            "--config.augment.scale=1,1",
        ],
        "model.backbone": ["--config.model.width=1"],  # most have no other width
    }
    config = load_config(SHAPES, [*needed.get(name, []), f"--config.{name}={value}"])
    for part in name.split("."):
        config = getattr(config, part)
    assert config == value


CASES = {
    "a folder for drawn shapes": (
        Config(data=Data(format="shapes", root="mine")),
        "config.data.root='mine': data.format=shapes reads no files; use --config voc, yolo or "
        "custom, or set data.format",
    ),
    "a batch for fewer devices": (
        Config(data=Data(batch_size=7)),
        "config.data.batch_size=7: must be divisible by the number of devices, 2, times "
        "config.training.accumulate=1",
    ),
    "a cache for several processes": (
        Config(
            data=Data(cache="device", augment="device"), distributed=Distributed("localhost:1", 2)
        ),
        "config.data.cache='device': needs a single process; data.cache=ram works with several "
        "processes",
    ),
    "several processes without a coordinator": (
        Config(distributed=Distributed(num_processes=2)),
        "config.distributed.num_processes=2: needs config.distributed.coordinator, which "
        "the processes connect to",
    ),
    "an odd number of channels": (
        Config(model=Model(neck="ghost_pan", channels=33)),
        "config.model.channels=33: must be even for ghost_pan",
    ),
    "a detector and a classifier to start from": (
        Config(training=Training(init_weights="a.pth", init_backbone="resnet18")),
        "config.training.init_backbone='resnet18': remove it, because "
        "config.training.init_weights='a.pth' includes a backbone; or remove init_weights to start "
        "from the classifier",
    ),
    "an extra level of a neck without one": (
        Config(model=Model(extra_level=True)),
        "config.model.extra_level=True: needs model.neck=ghost_pan or lc_pan",
    ),
    "a negative multiplier": (
        Config(training=Training(lr_multipliers=dataclasses.replace(Training().lr_multipliers,
                                                                    neck=-1.0))),
        "config.training.lr_multipliers.neck=-1.0: must not be negative",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_check_of_an_impossible_value_names_field_value_and_fix(case):
    config, message = CASES[case]
    with pytest.raises(UserError) as caught:
        check(config, num_devices=2)
    assert str(caught.value) == message
