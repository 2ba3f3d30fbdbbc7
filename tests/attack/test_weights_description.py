"""Untrusted configs in a `.npz` or a workdir: limits that they cannot raise."""

import json
import os

import numpy as np
import pytest

from nanodet_jax.config import MAX_SIDE, Config, Model, check
from nanodet_jax.errors import UserError
from nanodet_jax.inference.detector import Detector
from nanodet_jax.io import torch_names, weights
from nanodet_jax.io.weights import (
    ABOUT,
    ABOUT_LIMIT,
    MAX_INPUT_SIDE,
    describe,
    feature_bytes,
    load_description,
    load_entries,
    load_weights,
    read_description,
)
from tests.io.test_hostile_weights import CONFIG, SOME, npy
from tests.io.test_hostile_weights import weights as npz

NAMES = ("cat", "dog")
OVER = MAX_INPUT_SIDE + 32


def with_input(path, *sides):
    return npz(path, about=lambda about: about["config"].update(input_size=sides))


@pytest.mark.parametrize("sides", [(OVER, 64), (64, OVER)])
def test_input_size_of_weights_over_the_limit_is_an_error_unless_it_is_raised(tmp_path, sides):
    path = with_input(tmp_path / "w.npz", *sides)
    for load in (load_weights, Detector.load):
        with pytest.raises(
            UserError, match=r"w\.npz: config\.input_size=.*--max-input-side"
        ) as error:
            load(path)
        assert f"{sides[0]},{sides[1]}" in str(error.value)
    assert load_weights(path, max_input_side=OVER).config.input_size == sides
    assert Detector.load(path, max_input_side=OVER).config.input_size == sides
    assert load_weights(path, max_input_side=None).config.input_size == sides


def test_load_entries_ignores_the_input_size(tmp_path):
    assert load_entries(with_input(tmp_path / "w.npz", OVER, OVER))


def test_input_size_of_weights_at_the_limit_is_accepted(tmp_path):
    path = with_input(tmp_path / "w.npz", MAX_INPUT_SIDE, MAX_INPUT_SIDE)
    assert load_weights(path).config.input_size == (MAX_INPUT_SIDE, MAX_INPUT_SIDE)


@pytest.mark.parametrize("side", [MAX_SIDE + 32, 2**62])
def test_input_size_over_the_largest_allowed_is_an_error(tmp_path, side):
    with pytest.raises(UserError, match=r"config\.input_size=.*at most 8192"):
        check(Config(input_size=(32, side)))
    with pytest.raises(UserError, match=r"w\.npz: config\.input_size"):
        load_weights(with_input(tmp_path / "w.npz", 32, side), max_input_side=None)


def test_more_scores_than_int32_indexes_are_an_error():
    model = Model(num_classes=100_000)
    check(Config(model=model))
    with pytest.raises(UserError, match=r"config\.input_size=.*too large for 100000 classes"):
        check(Config(input_size=(MAX_SIDE, MAX_SIDE), model=model))


def test_weights_with_too_large_features_are_an_error(tmp_path):
    model = Model(width=0.5, num_classes=100_000, channels=16)
    config = Config(model=model)
    assert feature_bytes(config) > 2e9  # of an image of 320 x 320
    shapes = torch_names.flatten(weights._abstract(config))
    path = tmp_path / "w.npz"
    about = np.frombuffer(describe(config, ()).encode(), np.uint8)
    arrays = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    np.savez(path, **{ABOUT: about}, **arrays)
    with pytest.raises(UserError, match=r"w\.npz: config\.model needs about .* GB .*320x320"):
        load_weights(path)
    assert load_weights(path, max_input_side=4096).config == config


def test_feature_estimate_of_published_networks_fits_the_largest_input():
    side = MAX_INPUT_SIDE
    for model in (
        Model(num_classes=80),
        Model(num_classes=1203, channels=128),
        Model(num_classes=365, neck="ghost_pan", channels=256, extra_level=True, kernel_size=5),
    ):
        config = Config(input_size=(side, side), model=model)
        assert feature_bytes(config) < weights.BYTES_PER_PIXEL * side**2


@pytest.mark.parametrize(
    ("theirs", "given", "used"), [(1e9, None, 50), (3, None, 3), (3, 80, 80), (1e9, 70, 70)]
)
def test_megapixels_of_weights_only_lower_the_limit(tmp_path, theirs, given, used):
    path = npz(
        tmp_path / "w.npz",
        about=lambda about: about["config"]["data"].update(max_megapixels=theirs),
    )
    assert Detector.load(path, max_megapixels=given).max_megapixels == used


def test_megapixels_that_are_not_positive_are_an_error(tmp_path):
    path = npz(tmp_path / "w.npz")
    for given in (float("nan"), 0, -1):
        with pytest.raises(UserError, match="max_megapixels="):
            Detector.load(path, max_megapixels=given)


def test_weights_that_give_infinite_boxes_are_an_error(tmp_path):
    def spoil(arrays):
        for name in arrays:
            if "/head/output_" in name and name.endswith("bias"):
                bias = np.full(CONFIG.model.num_classes + 32, np.nan, np.float32)
                bias[: CONFIG.model.num_classes] = 9
                arrays[name] = npy(bias)

    detector = Detector.load(
        npz(tmp_path / "w.npz", spoil, lambda about: about["config"].update(input_size=[32, 32]))
    )
    with pytest.raises(UserError, match="boxes that are not finite"):
        detector(np.zeros((8, 8, 3), np.uint8))


def described(**changes):
    about = json.loads(describe(CONFIG, NAMES)) | changes
    return json.dumps({key: value for key, value in about.items() if value != "left out"})


SOUND = described()
FAULTS = {
    "names that are no list": described(class_names="ab"),
    "a name that is no text": described(class_names=["cat", 3]),
    "an empty name": described(class_names=["cat", ""]),
    "a name of 201 characters": described(class_names=["cat", "x" * 201]),
    "a name that controls a terminal": described(class_names=["cat", "\x1b[2J"]),
    "a name that no encoding has": described(class_names=["cat", "\ud800"]),
    "more names than classes": described(class_names=["a", "b", "c"]),
    "fewer names than classes": described(class_names=["a"]),
    "no names": described(class_names="left out"),
    "no config": described(config="left out"),
    "a list": "[]",
    "no classes": SOUND.replace('"num_classes": 2', '"num_classes": 0'),
    "a key twice": SOUND.replace('"width": 0.5', '"width": 0.5, "width": 0.5'),
    "a number of 5,000 digits": SOUND.replace('"channels": 96', '"channels": ' + "9" * 5000),
    "a number of 400 digits": SOUND.replace('"channels": 96', '"channels": ' + "9" * 400),
    "a boolean": SOUND.replace('"channels": 96', '"channels": true'),
    "not a number": SOUND.replace('"width": 0.5', '"width": NaN'),
    "depth": "[" * 100_000,
    "a field of 3 MB": SOUND.replace('"channels"', json.dumps("x" * 3_000_000)),
    "a value of 3 MB": SOUND.replace('"channels": 96', f'"channels": "{"x" * 3_000_000}"'),
    "a field that controls a terminal": SOUND.replace('"channels"', r'"\u001b[2J"'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_description_is_an_error_of_one_line_of_limited_length(tmp_path, fault):
    text = FAULTS[fault]
    assert text != SOUND
    file = tmp_path / ABOUT
    file.write_text(text)
    for read in (lambda: read_description(text, str(file)), lambda: load_description(file)):
        with pytest.raises(UserError) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(f"{file}: ")
        assert len(message) < len(str(file)) + 600
        assert message.isprintable()


def test_sound_description_is_read(tmp_path):
    file = tmp_path / ABOUT
    file.write_text(described(versions={"jax": "1"}))
    assert load_description(file) == read_description(SOUND, "-") == (CONFIG, NAMES)


def bad_byte(file):
    file.write_bytes(SOUND.encode().replace(b"cat", b"c\xfft"))


def too_long(file):
    file.write_bytes(SOUND.encode() + b" " * ABOUT_LIMIT)


UNREADABLE = {
    "a bad byte": (bad_byte, "utf-8"),
    "5 MB": (too_long, "bytes; the limit for about.json is"),
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a device": (lambda file: file.symlink_to("/dev/zero"), "is not a regular file"),
    "a folder": (lambda file: file.mkdir(), "is not a regular file"),
    "a link to nothing": (lambda file: file.symlink_to("nothing"), None),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_description_in_a_workdir_is_an_error_that_names_it(tmp_path, case):
    make, reason = UNREADABLE[case]
    make(tmp_path / ABOUT)
    if reason is None:
        reason = "is not the workdir of a run"
    else:
        with pytest.raises(UserError, match=f"{ABOUT}: .*{reason}"):
            load_description(tmp_path / ABOUT)
    with pytest.raises(UserError, match=reason) as caught:
        load_weights(tmp_path)
    assert str(caught.value).isprintable()


def test_long_description_in_a_npz_is_an_error(tmp_path):
    path = npz(tmp_path / "w.npz", about=lambda about: json.dumps(about) + " " * ABOUT_LIMIT)
    with pytest.raises(UserError, match=f"{ABOUT} has .* bytes"):
        load_weights(path)


@pytest.mark.parametrize("name", ["x" * 5000, "\x1b[2J", "\u202e"])
def test_array_name_in_an_error_is_escaped_and_truncated(tmp_path, name):
    path = npz(tmp_path / "w.npz", lambda arrays: arrays.update({f"!{name}": arrays[SOME]}))
    with pytest.raises(UserError, match="unexpected") as caught:
        load_weights(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize("name", ["x" * 5000, "\x1b[2J", "\u202e"])
def test_entry_name_in_an_error_is_escaped_and_truncated(name):
    like = weights._abstract(CONFIG)
    with pytest.raises(UserError, match="unexpected") as caught:
        torch_names.convert({name: np.zeros(1)}, like)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("path", ["x" * 300 + ".npz", "~no_such_user/x.npz", "a\0b.npz"])
def test_path_that_cannot_exist_is_an_error(path):
    with pytest.raises(UserError, match="npz: "):
        load_weights(path)
