"""Any input as a config either survives a round trip through json or is a UserError."""

import copy
import json

import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import example, given
from hypothesis import strategies as st

from nanodet_jax import config as configs
from nanodet_jax.io.weights import read_description
from tests.fuzz.inputs import JSON, SCALARS, accepts, fuzz

ODD = (None, True, -1, 0, 2**63, 10**18, 10**400, -(10**400), 1e308, 5e-324, float("nan"),
       float("inf"), "", "\ud800", "a\0", {}, [[]])  # fmt: skip
SOUND_CONFIG = json.loads(configs.to_json(configs.Config()))


@st.composite
def config_values(draw):
    """Draw a config in which a few fields, at any depth, have any value."""
    values = copy.deepcopy(SOUND_CONFIG)
    for _ in range(draw(st.integers(0, 3))):
        inner = values
        while True:
            key = draw(st.sampled_from(sorted(inner) or ["name"]))
            if not isinstance(inner.get(key), dict) or not draw(st.integers(0, 6)):
                break
            inner = inner[key]
        inner[key] = draw(JSON | st.lists(SCALARS, min_size=2, max_size=3))
    return values


def checked(text):
    config = configs.from_json(text)
    configs.check(config)
    return config


@fuzz
@given(config_values() | JSON)
@example(SOUND_CONFIG | {"input_size": [10**400, 32]})
@example(SOUND_CONFIG | {"name": "\ud800"})
@example(SOUND_CONFIG | {"assigner": SOUND_CONFIG["assigner"] | {"anchor_scale": 10**400}})
def test_config_with_any_values_round_trips_or_is_refused(values):
    text = json.dumps(values)
    config = accepts(checked, text)
    if config is not None:
        assert configs.from_json(configs.to_json(config)) == config
    for about in ({"config": values, "class_names": ["a"]}, values):
        accepts(read_description, json.dumps(about), "about.json")


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:9])
def test_config_with_an_odd_value_in_each_field_round_trips_or_is_refused(odd):
    """There are too many fields for random values to reach the one that breaks."""
    fields = flatten_dict(SOUND_CONFIG)
    for field in fields:
        for value in (odd, [odd], [odd, odd]):
            values = unflatten_dict(fields | {field: value})
            config = accepts(checked, json.dumps(values))
            if config is not None:
                assert configs.from_json(configs.to_json(config)) == config
            accepts(read_description, json.dumps({"config": values, "class_names": ["a"]}), "-")


@fuzz
@given(st.text(max_size=50))
@example("[" * 100_000)
@example("9" * 5000)
def test_config_of_any_text_is_refused(text):
    assert accepts(checked, text) is None
    assert accepts(read_description, text, "about.json") is None
