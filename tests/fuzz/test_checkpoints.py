"""A checkpoint of which a file is cut short, changed or longer: the true state, or none without a
word.
"""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanodet_jax.io.checkpoint import CHECKPOINTS
from tests.fuzz.inputs import EXAMPLES, fuzz
from tests.tools import corrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir of two checkpoints."""
    workdir = tmp_path_factory.mktemp("checkpoints") / "whole"
    corrupt.write(workdir)
    return workdir


@st.composite
def damaged(draw, original):
    """Bytes of a file that was cut short, of which some are other ones, or that has more."""
    content, size = bytearray(original), len(original)
    way = draw(st.sampled_from(["cut", "changed", "longer"]))
    if way == "cut":
        return bytes(content[: draw(st.integers(0, max(size - 1, 0)))])
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(size - 1, 0)))
        if way == "changed" and size:
            content[place] = draw(st.integers(0, 255))
        else:
            content[place:place] = draw(st.binary(min_size=1, max_size=9))
    return bytes(content)


# Where an array cannot be read, Orbax leaves others in the midst of it, which then say so.
@pytest.mark.filterwarnings("ignore:Exception ignored in")
def test_checkpoints(whole):
    newest = whole / CHECKPOINTS / str(corrupt.NEWEST)
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    spoiled = whole.with_name("spoiled")

    @settings(fuzz, max_examples=max(EXAMPLES // 3, 1))  # a tenth of a second each
    @given(st.data())
    def run(data):
        file = data.draw(st.sampled_from(files), label="file")
        content = data.draw(damaged(file.read_bytes()), label="content")
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(whole, spoiled)
        (spoiled / file.relative_to(whole)).write_bytes(content)
        assert corrupt.outcome(spoiled) in ("whole", "before", "refused")

    run()
