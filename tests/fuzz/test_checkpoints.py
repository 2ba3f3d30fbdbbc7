"""A checkpoint with a truncated, changed or extended file: a saved state, or a message."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanodet_jax.io.checkpoint import CHECKPOINTS
from tests.fuzz.inputs import EXAMPLES, fuzz
from tests.tools import corrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Workdir with two checkpoints."""
    workdir = tmp_path_factory.mktemp("checkpoints") / "whole"
    corrupt.write(workdir)
    return workdir


@st.composite
def damaged(draw, original):
    """The bytes of a file that is truncated, changed or extended."""
    content, size = bytearray(original), len(original)
    damage = draw(st.sampled_from(["cut", "changed", "longer"]))
    if damage == "cut":
        return bytes(content[: draw(st.integers(0, max(size - 1, 0)))])
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(0, max(size - 1, 0)))
        if damage == "changed" and size:
            content[position] = draw(st.integers(0, 255))
        else:
            content[position:position] = draw(st.binary(min_size=1, max_size=9))
    return bytes(content)


# If an array cannot be read, Orbax leaves others half read, which print exceptions.
@pytest.mark.filterwarnings("ignore:Exception ignored in")
def test_damaged_checkpoint_restores_a_true_state_or_reports_damage(whole):
    newest = whole / CHECKPOINTS / str(corrupt.NEWEST)
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    damaged_copy = whole.with_name("spoiled")

    @settings(fuzz, max_examples=max(EXAMPLES // 3, 1))  # a tenth of a second each
    @given(st.data())
    def run(data):
        file = data.draw(st.sampled_from(files), label="file")
        content = data.draw(damaged(file.read_bytes()), label="content")
        shutil.rmtree(damaged_copy, ignore_errors=True)
        shutil.copytree(whole, damaged_copy)
        (damaged_copy / file.relative_to(whole)).write_bytes(content)
        assert corrupt.outcome(damaged_copy) in ("whole", "before", "refused")

    run()
