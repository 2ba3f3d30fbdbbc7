"""Files in the format of PyTorch before 1.6, built by hand."""

import io
import pickle
import sys
from collections import OrderedDict

import numpy as np
import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.io import torch_archive, torch_pickle
from nanodet_jax.io.torch_archive import read_state_dict
from tests.io.test_torch_archive import (
    FOREIGN,
    KINDS,
    Called,
    StorageStub,
    TensorStub,
    assert_altered_bytes_give_user_errors_only,
    tensor,
    text,
)
from tests.io.test_torch_archive import torch as torch

MAGIC = 0x1950A86A20F9469CFC6C
MACHINE = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def pickle_with_storages(value, view=None):
    """Return the pickle of a value as torch.save writes it, and its storages by key."""
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if not isinstance(item, StorageStub):
                return None
            storages[item.key] = item.numbers
            kind = getattr(sys.modules["torch"], f"{item.kind}Storage")
            return ("storage", kind, item.key, "cpu", item.length, view)

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    return buffer.getvalue(), storages


def save_legacy(path, value, *, version=1001, machine=MACHINE, keys=None, counts=(), view=None):
    """Write a value with TensorStubs as torch.save of PyTorch 1.5 does."""
    pickled, storages = pickle_with_storages(value, view)
    keys = sorted(storages) if keys is None else keys
    counts = dict(counts)
    parts = [pickle.dumps(MAGIC, 2), pickle.dumps(version, 2), pickle.dumps(machine, 2), pickled]
    parts.append(pickle.dumps(keys, 2))
    for key in keys if isinstance(keys, list) else ():
        numbers = storages.get(key, np.zeros(1, np.float32))
        parts.append(counts.get(key, numbers.size).to_bytes(8, "little") + numbers.tobytes())
    path.write_bytes(b"".join(parts))
    return path


def test_every_dtype_is_read(torch, tmp_path):
    values = {kind: np.arange(6).reshape(2, 3) for kind in KINDS if kind[0] != "B"}
    state = {kind: tensor(kind, array, kind) for kind, array in values.items()}
    state["Bool"] = tensor("b", [1, 0], "Bool")
    state["BFloat16"] = tensor("f", [0x3F80, 0xC040], "BFloat16")
    read = read_state_dict(save_legacy(tmp_path / "m.pth", state))
    for kind, array in values.items():
        assert read[kind].dtype == np.dtype(KINDS[kind])
        np.testing.assert_array_equal(read[kind], array)
    np.testing.assert_array_equal(read["Bool"], np.array([True, False]))
    np.testing.assert_array_equal(read["BFloat16"], np.float32([1, -3]))


def test_tensors_are_views_and_other_storages_are_skipped(torch, tmp_path):
    base = np.arange(24).reshape(2, 3, 4)
    shared = StorageStub("2", base.ravel())
    state = OrderedDict(
        whole=TensorStub(shared, (2, 3, 4), (12, 4, 1)),
        turned=TensorStub(shared, (4, 3), (1, 4), offset=12),
        steps=tensor("3", 7, "Long"),
    )
    state._metadata = {"": {"version": 1}}
    checkpoint = {
        "meta": {"epoch": 12, "CLASSES": ("cat", "dog"), "config": "model = dict()\n"},
        "state_dict": state,
        "optimizer": {"momentum": tensor("1", np.zeros(1000), "Double")},  # before the others
    }
    read = read_state_dict(save_legacy(tmp_path / "m.pth", checkpoint))
    assert set(read) == {"whole", "turned", "steps"}
    np.testing.assert_array_equal(read["whole"], base)
    np.testing.assert_array_equal(read["turned"], base[1].T)
    assert read["steps"] == 7 and read["steps"].dtype == np.int64
    assert np.shares_memory(read["whole"], read["turned"])


def test_mappings_and_tensors_of_the_oldest_files_are_read(torch, tmp_path):
    class OldTensor(TensorStub):
        def __reduce__(self):
            return torch._utils._rebuild_tensor, self.arguments[:4]

    old = OldTensor(StorageStub("0", np.arange(6)), (2, 3), (3, 1))
    pairs = [["a", old], ["b", tensor("1", [5])]]  # of an OrderedDict in Python 2
    read = read_state_dict(save_legacy(tmp_path / "m.pth", Called(OrderedDict, pairs)))
    np.testing.assert_array_equal(read["a"], np.arange(6).reshape(2, 3))
    assert read["b"] == 5


def test_memo_of_python_2_begins_at_one():
    assert torch_pickle.interpret(b"}q\x01" + text("a") + b"q\x02h\x02s.") == {"a": "a"}


ORDERED = b"ccollections\nOrderedDict\n"
PAIRS = {
    "no pairs": (ORDERED + b"](K\x01K\x02e\x85R.", "int instead of list"),
    "three values": (ORDERED + b"](](K\x01K\x02K\x03ee\x85R.", "too many values"),
    "list as key": (ORDERED + b"](](]Nee\x85R.", "list as a key"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_mappings_of_other_values_are_refused(case):
    pickled, reason = PAIRS[case]
    with pytest.raises(UserError, match=f"damaged pickle .*{reason}"):
        torch_pickle.interpret(pickled)


def test_list_becomes_a_mapping_only_once():
    """A file could otherwise copy one long list thousands of times."""
    made = torch_pickle.interpret(
        b"(" + ORDERED + b"](](" + text("a") + b"Nee\x85q\x00R" + ORDERED + b"h\x00Rt."
    )
    assert made == ({"a": None}, {})


BAD = {
    "version": (
        {"version": 1000},
        "is neither a zip archive written by torch.save nor ",
    ),
    "machine": ({"machine": 3}, "written on a big-endian machine"),
    "big-endian": ({"machine": {"little_endian": False}}, "written on a big-endian machine"),
    "keys": ({"keys": ("0",)}, "its list of storages is not a list of keys"),
    "number as key": ({"keys": [0]}, "its list of storages is not a list of keys"),
    "missing key": ({"keys": []}, "it has no storage '0'"),
    "unknown key": ({"keys": ["0", "x"]}, "storage 'x' is unexpected"),
    "key twice": ({"keys": ["0", "0"]}, "storage '0' is unexpected"),
    "count": ({"counts": {"0": 3}}, "storage '0' has the wrong length"),
    "huge count": ({"counts": {"0": 2**62}}, "storage '0' has the wrong length"),
    "view of a storage": ({"view": ("0", 0, 2)}, "damaged pickle .*persistent id"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_refused(torch, tmp_path, case):
    options, reason = BAD[case]
    path = save_legacy(tmp_path / "m.pth", {"a": tensor("0", [1.0, 2.0])}, **options)
    with pytest.raises(UserError, match=f"m.pth: .*{reason}"):
        read_state_dict(path)


def test_storage_longer_than_the_file_is_refused_without_allocating_it(torch, tmp_path):
    state = {"a": TensorStub(StorageStub("0", [1.0], length=2**40), (1,), (1,))}
    path = save_legacy(tmp_path / "m.pth", state, counts={"0": 2**40})
    with pytest.raises(UserError, match=r"m\.pth: damaged file: it ends too early"):
        read_state_dict(path)


def test_storage_with_two_types_is_refused(torch, tmp_path):
    state = {"a": tensor("0", [1.0]), "b": tensor("0", [1], "Int")}
    with pytest.raises(UserError, match="storage '0' has two types or lengths"):
        read_state_dict(save_legacy(tmp_path / "m.pth", state))


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_code_is_refused_by_name(tmp_path, case):
    pickled, name = FOREIGN[case]
    start = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, MACHINE))
    (tmp_path / "m.pth").write_bytes(start + pickled + pickle.dumps([], 2))
    reason = f"m.pth: '?{name}.* is not allowed in a weights file; nothing was executed"
    with pytest.raises(UserError, match=reason):
        read_state_dict(tmp_path / "m.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["m.pth"]


def test_long_pickle_is_refused(torch, tmp_path, monkeypatch):
    path = save_legacy(tmp_path / "m.pth", {"a": tensor("0", [1.0])})
    monkeypatch.setattr(torch_archive, "PICKLE_LIMIT", 150)
    with pytest.raises(UserError, match=r"m\.pth: damaged pickle"):
        read_state_dict(path)


def test_cut_and_altered_files_give_user_errors_only(torch, tmp_path):
    state = {f"a{i}": tensor(str(i), [i, 2]) for i in range(3)}
    path = save_legacy(tmp_path / "m.pth", state)
    raw = path.read_bytes()
    for length in range(0, len(raw), 3):
        path.write_bytes(raw[:length])
        with pytest.raises(UserError, match=r"m\.pth: "):
            read_state_dict(path)
    assert_altered_bytes_give_user_errors_only(path, raw)
