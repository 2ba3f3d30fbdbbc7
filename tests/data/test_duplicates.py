"""Images that occur in both splits, by content."""

import shutil

import numpy as np
import pytest

from nanodet_jax.data.duplicates import find_duplicates, group_copies
from nanodet_jax.data.records import make_record
from tests.builders import noise, write_image


def record(name, image):
    return make_record(1, name, image, (0, 0), [], [], [], [])


@pytest.fixture
def files(tmp_path):
    return [write_image(tmp_path / f"{seed}.png", noise(9, 9, seed)) for seed in range(4)]


def names(train, val):
    return [(one.name, other.name) for one, other in find_duplicates(train, val)]


def test_duplicates_are_files_of_the_same_content(files, tmp_path):
    copy = tmp_path / "copy.png"
    shutil.copy(files[1], copy)
    train = [record(file.name, file) for file in files[:2]]
    val = [record(file.name, file) for file in (copy, files[2], files[0], tmp_path / "gone.png")]
    assert names(train, val) == [("0.png", "0.png"), ("1.png", "copy.png")]
    assert names(train, val[1:2]) == []


def test_duplicates_of_one_size_differ_by_content():
    pixels = noise(9, 9)
    changed = pixels.copy()
    changed[0, 0, 0] ^= 1
    train = [record("a", pixels)]
    assert names(train, [record("b", changed)]) == []
    assert names(train, [record("b", np.asfortranarray(pixels))]) == [("a", "b")]
    assert names([record("a", b"bytes")], [record("b", b"bytes"), record("c", b"")]) == [("a", "b")]
    assert names([record("a", b"")], [record("b", b"")]) == []


def test_duplicates_read_only_files_of_equal_size(files, tmp_path, monkeypatch):
    larger = write_image(tmp_path / "larger.png", noise(30, 30))
    monkeypatch.setattr("nanodet_jax.data.duplicates.open_regular", None)
    assert names([record("a", files[0])], [record("b", larger)]) == []


def test_copies_are_groups_of_one_content(files, tmp_path):
    for number in range(2):
        shutil.copy(files[1], tmp_path / f"copy{number}.png")
    records = [record(path.name, path) for path in sorted(tmp_path.iterdir())]
    [group] = group_copies(records)
    assert [one.name for one in group] == ["1.png", "copy0.png", "copy1.png"]
