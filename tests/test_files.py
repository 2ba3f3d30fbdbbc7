"""Writing JSON files: a failure never leaves a partial file."""

import json

import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.files import write_json


def test_write_json_writes_the_whole_file_or_nothing(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_json(path, {"AP": 0.1, "name": "猫"}, indent=2)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"AP": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"AP": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"AP": 0.1, "name": "猫"}
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_write_json_to_an_unwritable_path_raises_a_user_error_with_the_path(tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder.json", tmp_path / "file" / "metrics.json"):
        with pytest.raises(UserError, match=str(path)):
            write_json(path, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.json"]
