"""The field reference in `docs/config.md`."""

from pathlib import Path

from nanodet_jax.config.reference import field_reference

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_committed_field_reference_equals_the_generated_one():
    generate = "python -m nanodet_jax.config.reference > docs/config.md"
    assert PAGE.read_text() == field_reference(), f"run: {generate}"
