"""Records and metrics with valid checksums and invalid content."""

import copy
import math
from contextlib import closing

import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.io import checksums
from nanodet_jax.io.checkpoint import Checkpoints
from tests.attack import checkpoints as made
from tests.tools import corrupt

NAME = "variables/params/conv/kernel"
HUGE = 10**400
DEEP = 100_000


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def of_array(**fields):
    """Return a function that changes the entry of one array in a record."""
    return lambda record: record["arrays"][NAME].update(fields)


def without(field):
    return lambda record: record["arrays"][NAME].pop(field) and None


def named(name):
    """Return a function that renames one array in a record."""
    return lambda record: record["arrays"].update({name: record["arrays"].pop(NAME)})


RECORDS = {
    "a list": lambda record: [],
    "a text": lambda record: "record",
    "a number": lambda record: 1,
    "null": lambda record: {"version": None, "arrays": None},
    "empty": lambda record: {},
    "no version": lambda record: {"arrays": record["arrays"]},
    "version true": lambda record: record | {"version": True},
    "version as a float": lambda record: record | {"version": 1.0},
    "version as text": lambda record: record | {"version": "1"},
    "version as a list": lambda record: record | {"version": [1]},
    "version of 400 digits": lambda record: record | {"version": HUGE},
    "version from the future": lambda record: {"version": 2},
    "no arrays": lambda record: {"version": 1},
    "arrays as a list": lambda record: record | {"arrays": list(record["arrays"].items())},
    "arrays as text": lambda record: record | {"arrays": "variables"},
    "arrays empty": lambda record: record | {"arrays": {}},
    "more keys": lambda record: record | {"more": 1},
    "an array as a list": lambda record: record["arrays"].update({NAME: []}),
    "an array as null": lambda record: record["arrays"].update({NAME: None}),
    "an array of another part": lambda record: record["arrays"].update({"other/x": {}}),
    "no shape": without("shape"),
    "no dtype": without("dtype"),
    "no digest": without("sha256"),
    "another key of an array": of_array(more=1),
    "shape as a number": of_array(shape=2000),
    "shape as text": of_array(shape="40"),
    "shape as an object": of_array(shape={"0": 40}),
    "shape null": of_array(shape=None),
    "shape negative": of_array(shape=[-40, 50]),
    "shape of booleans": of_array(shape=[True, True]),
    "shape of floats": of_array(shape=[40.0, 50.0]),
    "shape of lists": of_array(shape=[[40], [50]]),
    "shape of 400 digits": of_array(shape=[HUGE, 50]),
    "shape of 100000 dimensions": of_array(shape=[1] * 100_000),
    "shape nested deeply": of_array(shape=nested(500)),
    "shape infinite": of_array(shape=[math.inf, 50]),
    "shape not a number": of_array(shape=[math.nan, 50]),
    "shape of another model": of_array(shape=[50, 40]),
    "dtype unknown": of_array(dtype="float33"),
    "dtype of objects": of_array(dtype="object"),
    "dtype of fields": of_array(dtype="f4,i4"),
    "dtype as a list": of_array(dtype=[["a", "<f4"]]),
    "dtype as a number": of_array(dtype=4),
    "dtype null": of_array(dtype=None),
    "dtype of control characters": of_array(dtype="\x1b[2Jfloat32"),
    "dtype of a megabyte": of_array(dtype="f" * (1 << 20)),
    "digest as a number": of_array(sha256=0),
    "digest too short": of_array(sha256="00"),
    "digest of letters": of_array(sha256="x" * 64),
    "name of control characters": named("variables/params/\x1b]0;title\x07"),
    "name that turns the text around": named("variables/params/\u202eabc"),
    "name with a lone surrogate": named("variables/params/\ud800"),
    "name that leads out": named("variables/../../x"),
    "name that is absolute": named("/etc/passwd"),
    "name empty": named(""),
    "name of a part alone": named("variables"),
    "name of lines": named("variables/a\nnote: all is well"),
    "name of a megabyte": named("variables/" + "a" * (1 << 20)),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Checkpoint whose record each test changes and restores."""
    return made.save(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("case", RECORDS)
def test_restore_with_an_invalid_record_is_an_error_of_one_line(whole, case):
    path = whole / "record" / "metadata"
    before = path.read_bytes()
    like = corrupt.state_of(7)
    try:
        made.change_record(whole, RECORDS[case])
        with (
            closing(Checkpoints(whole.parents[1], writing=False)) as checkpoints,
            pytest.raises(UserError) as raised,
        ):
            checkpoints.restore(made.STEP, like)
    finally:
        path.write_bytes(before)
    message = str(raised.value)
    assert str(whole) in message
    assert message.isprintable()
    assert len(message) < 800


@pytest.mark.parametrize("text", ["[" * DEEP, '{"value":' * DEEP, "", "\0", "9" * 5000, "NaN"])
def test_restore_with_a_record_that_is_not_a_json_object_is_an_error(whole, text):
    path = whole / "record" / "metadata"
    before = path.read_bytes()
    try:
        path.write_text(text)
        with (
            closing(Checkpoints(whole.parents[1], writing=False)) as checkpoints,
            pytest.raises(UserError, match="its record cannot be read"),
        ):
            checkpoints.restore(made.STEP, corrupt.state_of(7))
    finally:
        path.write_bytes(before)


GOOD = corrupt.metrics_of(0.5) | {"per_class": {"cat": {"AP": 0.5, "AP50": 0.7}}}


def metric(value):
    return GOOD | {"AP": value}


METRICS = {
    "a list": [],
    "null": None,
    "a number": 0.5,
    "empty": {},
    "AP alone": {"AP": 0.5},
    "AP missing": {name: value for name, value in GOOD.items() if name != "AP"},
    "AP null": metric(None),
    "AP true": metric(True),
    "AP as text": metric("0.5"),
    "AP as a list": metric([0.5]),
    "AP as an object": metric({"value": 0.5}),
    "AP not a number": metric(math.nan),
    "AP infinite": metric(math.inf),
    "AP of 400 digits": metric(HUGE),
    "AP of minus 400 digits": metric(-HUGE),
    "AP50 as text": GOOD | {"AP50": "high"},
    "another metric as a list": GOOD | {"F1": []},
    "a metric of control characters": GOOD | {"\x1b[2J": []},
    "per_class missing": {name: value for name, value in GOOD.items() if name != "per_class"},
    "per_class as a list": GOOD | {"per_class": [0.5]},
    "per_class null": GOOD | {"per_class": None},
    "per_class of numbers": GOOD | {"per_class": {"cat": 0.5}},
    "per_class without AP50": GOOD | {"per_class": {"cat": {"AP": 0.5}}},
    "per_class of NaN": GOOD | {"per_class": {"cat": {"AP": math.nan, "AP50": 0.5}}},
    "per_class nested": GOOD | {"per_class": {"cat": {"AP": nested(500), "AP50": 0.5}}},
}


@pytest.mark.parametrize("case", METRICS)
def test_checkpoint_with_invalid_metrics_counts_as_not_evaluated(whole, case, capsys):
    path = whole / "metrics.json"
    made.sign(path, METRICS[case])
    with closing(Checkpoints(whole.parents[1], writing=False)) as checkpoints:
        assert checkpoints.metrics(made.STEP) is None
        assert checkpoints.best_step() is None
    said = capsys.readouterr().out
    assert f"note: {path}: is damaged" in said
    assert "counts as not evaluated" in said
    assert said.rstrip("\n").isprintable()


def test_checkpoint_with_valid_metrics_returns_them(whole):
    made.sign(whole / "metrics.json", copy.deepcopy(GOOD))
    with closing(Checkpoints(whole.parents[1], writing=False)) as checkpoints:
        assert checkpoints.metrics(made.STEP) == GOOD
        assert checkpoints.best_step() == made.STEP


def test_array_name_in_a_message_is_escaped_and_truncated():
    described = {f"\x1b[2J{'a' * 1000}": {"shape": [], "dtype": "float32"}}
    difference = checksums.find_structure_mismatch(described, {})
    assert difference.isprintable()
    assert len(difference) < 300
