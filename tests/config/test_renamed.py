"""Fields under the names of earlier versions, in json and in flags."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from nanodet_jax.cli.config_flags import load_config
from nanodet_jax.config import Config, LrMultipliers, from_json, rename_flags
from nanodet_jax.config.renamed import RENAMED
from nanodet_jax.errors import UserError

SHAPES = str(Path(__file__).parents[2] / "configs" / "shapes.py")
# Values other than the defaults, by old name.
OLD = {
    "assigner.cell_scale": 4.0,
    "training.rate_batch": 64,
    "training.rates": {"backbone": 0.5, "neck": 1.0, "head": 1.0, "guidance": 0.0},
    "training.coordinator": "localhost:1234",
    "training.processes": 3,
    "training.process": 2,
}
NOTES = [f"note: config.{old} is now config.{new}" for old, new in RENAMED.items()]


def renamed_config():
    config = Config()
    config.assigner.anchor_scale = 4.0
    config.training.lr_base_batch_size = 64
    config.training.lr_multipliers = LrMultipliers(backbone=0.5, guidance=0.0)
    config.distributed.coordinator = "localhost:1234"
    config.distributed.num_processes = 3
    config.distributed.process_index = 2
    return config


def old_json(values):
    """Return the json of a config as an earlier version wrote it, with some values changed."""
    content = asdict(Config())
    content.pop("distributed")
    content["assigner"].pop("anchor_scale")
    for name in ("lr_base_batch_size", "lr_multipliers"):
        content["training"].pop(name)
    for name, value in values.items():
        section, field = name.split(".")
        content[section][field] = value
    return json.dumps(content)


def defaults_by_old_name():
    content = asdict(Config())
    found = {}
    for old, new in RENAMED.items():
        section, field = new.split(".")
        found[old] = content[section][field]
    return found


def test_json_with_old_names_is_read_with_a_line_for_each(capsys):
    assert set(OLD) == set(RENAMED)
    assert from_json(old_json(OLD)) == renamed_config()
    assert capsys.readouterr().out.splitlines() == NOTES


def test_json_with_defaults_under_old_names_is_read_silently(capsys):
    """Files that this project wrote hold every field, whether or not the user has set it."""
    assert from_json(old_json(defaults_by_old_name())) == Config()
    assert capsys.readouterr().out == ""


def test_json_with_both_names_of_a_field_is_refused():
    text = '{"training": {"rate_batch": 3, "lr_base_batch_size": 4}}'
    with pytest.raises(UserError, match=r"config\.training\.rate_batch: unknown field"):
        from_json(text)


def test_flags_with_old_names_are_read_with_a_line_for_each(capsys):
    flags = ["--config.training.coordinator", "localhost:1234"]  # a value may be separate
    for name, value in OLD.items():
        if isinstance(value, dict):
            flags += [f"--config.{name}.{part}={factor}" for part, factor in value.items()]
        elif name != "training.coordinator":
            flags.append(f"-config.{name}={value}")  # absl takes a single dash too
    config, expected = load_config(SHAPES, flags), renamed_config()
    assert config.assigner == expected.assigner
    assert config.distributed == expected.distributed
    assert config.training.lr_base_batch_size == expected.training.lr_base_batch_size
    assert config.training.lr_multipliers == expected.training.lr_multipliers
    assert set(capsys.readouterr().out.splitlines()) == set(NOTES)


def test_other_flags_are_left_unchanged(capsys):
    flags = [
        "--config.training.process_index=1",
        "--config.name=--config.training.rates=1",
        "--config=configs/shapes.py",
        "--workdir=--config.training.rates",
        "x",
    ]
    assert rename_flags(flags) == flags
    assert capsys.readouterr().out == ""


def test_unknown_fields_are_still_refused():
    with pytest.raises(UserError, match=r"config\.training\.rate: unknown field"):
        from_json('{"training": {"rate": 3}}')
    with pytest.raises(UserError, match="rate"):
        load_config(SHAPES, ["--config.training.rate=3"])
