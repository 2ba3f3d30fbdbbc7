"""Parity checks on the fixtures in the repository, and on published weights if available."""

from pathlib import Path

import pytest

from tests.tools import parity
from tests.tools.parity_checks import find_checks

HERE = Path(__file__).parent / "reference"
SHARED = Path(__file__).parents[2] / "shared"


def names(folder: Path) -> list[str]:
    nowhere = folder / "nowhere"
    return [name for name, check in find_checks(folder, nowhere, nowhere) if check]


@pytest.mark.parametrize("name", names(HERE))
def test_fixture_passes_its_parity_check(name, capsys):
    assert parity.main([str(HERE), "--only", f"^{name}$"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("weights", ["nanodet-m_320", "nanodet-plus-m_320"])
def test_detections_of_published_weights_pass_their_parity_check(weights, capsys):
    folder = SHARED / "reference"
    if not folder.is_dir():
        pytest.skip("needs shared/reference, shared/weights and shared/data/coco_mini")
    only = f"^detections_{weights}$"
    assert parity.main([str(folder), "--only", only]) == 0, capsys.readouterr().out


def test_parity_fails_if_no_fixture_matches():
    assert parity.main([str(HERE), "--only", "no_such_fixture"]) == 1


def test_parity_fails_on_a_wrong_number(tmp_path, capsys):
    for file in ("assign_atss.npz", "schedule.json"):
        (tmp_path / file).write_bytes((HERE / file).read_bytes())
    text = (tmp_path / "schedule.json").read_text()
    (tmp_path / "schedule.json").write_text(text.replace('"base_lr": 0.14', '"base_lr": 0.14001'))
    assert parity.main([str(tmp_path)]) == 1
    assert "1 passed, 1 failed" in capsys.readouterr().out
