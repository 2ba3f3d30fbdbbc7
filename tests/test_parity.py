"""Parity checks on the small fixtures of the project, and on all fixtures if they are present."""

from pathlib import Path

import pytest

from tests.tools import parity
from tests.tools.parity_checks import find_checks

HERE = Path(__file__).parent / "reference"
SHARED = Path(__file__).parents[2] / "shared"


def names(folder: Path) -> list[str]:
    missing = folder / "missing"
    return [name for name, check in find_checks(folder, missing, missing) if check]


@pytest.mark.parametrize("name", names(HERE))
def test_parity_of_a_small_fixture_passes(name, capsys):
    assert parity.main([str(HERE), "--only", f"^{name}$"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    "weights", [pytest.param("nanodet-m_320", marks=pytest.mark.long), "nanodet-plus-m_320"]
)
def test_parity_of_detections_of_published_weights_passes(weights, capsys):
    folder = SHARED / "reference"
    if not folder.is_dir():
        pytest.skip("needs shared/reference, shared/weights and shared/data/coco_mini")
    only = f"^detections_{weights}$"
    assert parity.main([str(folder), "--only", only]) == 0, capsys.readouterr().out


def test_parity_without_a_matching_fixture_fails():
    assert parity.main([str(HERE), "--only", "no_such_fixture"]) == 1


def test_parity_of_a_changed_number_fails(tmp_path, capsys):
    for file in ("assign_atss.npz", "schedule.json"):
        (tmp_path / file).write_bytes((HERE / file).read_bytes())
    text = (tmp_path / "schedule.json").read_text()
    (tmp_path / "schedule.json").write_text(text.replace('"base_lr": 0.14', '"base_lr": 0.14001'))
    assert parity.main([str(tmp_path)]) == 1
    assert "1 passed, 1 failed" in capsys.readouterr().out
