"""Readers of weights with any input: arrays within the size of the file, or a UserError."""

import zipfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanodet_jax.io.npz import read_npz
from nanodet_jax.io.torch_archive import read_state_dict
from tests.fuzz.inputs import accepts, fuzz
from tests.io.test_torch_archive import TensorStub, archive, save, tensor, torch  # noqa: F401


@pytest.fixture(scope="module")
def pth(tmp_path_factory):
    return tmp_path_factory.mktemp("pth") / "m.pth"


INSTRUCTIONS = st.sampled_from(
    [b"}", b"(", b")", b"]", b"s", b"u", b"a", b"e", b"0", b"1", b"2", b"N", b"K\x01", b"\x85",
     b"\x86", b"\x87", b"q\x00", b"h\x00", b"r\xff\xff\xff\xff", b"\x94", b"R", b"b", b"Q", b"t",
     b"X\x01\x00\x00\x00a", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"\x93",
     b"ctorch._utils\n_rebuild_tensor_v2\n", b"X\x07\x00\x00\x00storage", b"J\xff\xff\xff\xff",
     b"ctorch\nSize\n", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"G\x7f\xf0" + bytes(6),
     b"cos\nsystem\n", b"\x81", b"o", b"\x82\x01", b"\x80\x02", b"I01\n", b"P1\n", b"d", b"l"]
)  # fmt: skip


@fuzz
@given(st.lists(INSTRUCTIONS, max_size=25).map(b"".join) | st.binary(max_size=40))
@example(b"}" + b")q\x00" + b"h\x00\x86q\x00" * 200)
def test_state_dict_of_any_pickle_is_arrays_or_an_error(pth, instructions):
    state = accepts(read_state_dict, archive(pth, instructions + b".", {"a": bytes(8)}))
    assert state is None or all(isinstance(array, np.ndarray) for array in state.values())


def test_state_dict_of_a_damaged_archive_has_its_size_or_is_an_error(torch, pth):  # noqa: F811
    shared = tensor("0", np.arange(12).reshape(3, 4))
    whole = save(pth, {"a": shared, "b": TensorStub(shared.arguments[0], (2, 2), (4, 1), 1)})
    original = whole.read_bytes()

    @fuzz
    @given(st.data())
    def run(data):
        raw = bytearray(original)
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        pth.write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
        state = accepts(read_state_dict, pth)
        assert state is None or sum(array.size for array in state.values()) <= 16

    run()


HEADER_PARTS = st.sampled_from(
    ["{", "}", "'descr'", ":", "'<f4'", "'|O'", "'|V9'", ",", "'fortran_order'", "False", "True",
     "'shape'", "(2,)", "(", ")", "2", "-1", "()", "[('a', '<f4')]", "2L", "\n", "\\", "'", "None",
     "1e9", "0", " "]
)  # fmt: skip
SOUND = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


@fuzz
@given(
    st.lists(HEADER_PARTS, max_size=20).map("".join)
    | st.sampled_from([SOUND.replace("(2,)", s) for s in ("(2, 1)", "(-1,)", "(2**9,)", "(0, 9)")])
    | st.text(max_size=20),
    st.binary(max_size=9),
    st.sampled_from([b"\x93NUMPY\x01\0", b"\x93NUMPY\x02\0", b"\x93NUMPY\x03\0", b"PK", b""]),
)
@example(SOUND, bytes(8), b"\x93NUMPY\x01\0")
@example(SOUND.replace("<f4", "|S0"), b"", b"\x93NUMPY\x01\0")
@example("(" * 9000, b"", b"\x93NUMPY\x01\0")
@example(SOUND.replace("2,", "0," * 70), b"", b"\x93NUMPY\x01\0")
def test_npz_of_any_header_has_its_size_or_is_an_error(pth, header, content, magic):
    line = header.encode(errors="ignore")
    path = pth.with_suffix(".npz")
    length = len(line).to_bytes(4 if magic[6:7] == b"\x02" else 2, "little")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", magic + length + line + content)
    arrays = accepts(read_npz, path)
    assert arrays is None or sum(array.nbytes for array in arrays.values()) <= len(content)
