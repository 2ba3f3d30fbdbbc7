"""Errors for unknown fields, in Python and in json."""

import copy
import dataclasses
import pickle

import pytest

from nanodet_jax.config import Config, from_json
from nanodet_jax.config.section import fields_of
from nanodet_jax.errors import UserError

SECTIONS = ["config", *(name for name, hint in fields_of(Config) if dataclasses.is_dataclass(hint))]
# A field that does not exist, and the rest of the error.
UNKNOWN = {
    "config.training.stepz": "did you mean config.training.steps?",
    "config.training.epoch": "did you mean config.training.epochs?",
    "config.batch_size": "did you mean config.data.batch_size?",
    "config.data.epochs": "did you mean config.training.epochs?",
    "config.training.guidence": "did you mean config.training.lr_multipliers.guidance?",
    "config.traning": "did you mean config.training?",
    "config.loss.iou": "did you mean config.loss.giou?",
    "config.model.name": "did you mean config.name or config.data.name or config.assigner.name?",
    "config.loss.zzz": "known fields are quality_focal, distribution_focal, giou",
    "config.zzz": "known fields are name, input_size, precision, data, augment, model, assigner, "
    "compat, loss, training, distributed",
}


def section(path):
    """Return the section of a default config at a full name."""
    found = Config()
    for name in path.split(".")[1:]:
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("path", UNKNOWN)
def test_unknown_field_in_python_names_the_close_ones(path):
    holder, _, name = path.rpartition(".")
    expected = f"{path}: unknown field; {UNKNOWN[path]}"
    with pytest.raises(AttributeError) as assigned:
        setattr(section(holder), name, 3)
    with pytest.raises(AttributeError) as read:
        getattr(section(holder), name)
    with pytest.raises(TypeError) as created:
        type(section(holder))(**{name: 3})
    with pytest.raises(TypeError) as replaced:
        dataclasses.replace(section(holder), **{name: 3})
    for caught in (assigned, read, created, replaced):
        assert str(caught.value) == expected


@pytest.mark.parametrize("path", UNKNOWN)
def test_unknown_field_in_json_names_the_close_ones(path):
    _, *holders, name = path.split(".")
    text = f'{{"{name}": 3}}'
    for holder in reversed(holders):
        text = f'{{"{holder}": {text}}}'
    with pytest.raises(UserError) as caught:
        from_json(text)
    assert str(caught.value) == f"{path}: unknown field; {UNKNOWN[path]}"


@pytest.mark.parametrize("path", SECTIONS)
def test_every_section_refuses_an_unknown_field(path):
    with pytest.raises(AttributeError, match=rf"^{path}.xyzzy: unknown field; known fields are "):
        section(path).xyzzy = 3


def test_config_with_sections_can_be_copied_and_pickled():
    config = Config()
    config.training.epochs = 7
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert not hasattr(config, "nope")
