"""Equality of the version in all files that contain it."""

from importlib import metadata
from pathlib import Path

import nanodet_jax

REPO = Path(__file__).parents[1]


def test_distribution_citation_and_changelog_have_the_version_of_the_package():
    assert metadata.version("nanodet_jax") == nanodet_jax.__version__
    assert f"\nversion: {nanodet_jax.__version__}\n" in (REPO / "CITATION.cff").read_text()
    assert f"## [{nanodet_jax.__version__}] - " in (REPO / "CHANGELOG.md").read_text()
