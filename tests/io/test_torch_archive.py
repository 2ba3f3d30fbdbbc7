"""PyTorch files, built by hand: no test needs PyTorch or executes a foreign pickle."""

import io
import pickle
import random
import sys
import types
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest

from nanodet_jax.errors import UserError
from nanodet_jax.io import torch_archive
from nanodet_jax.io.torch_archive import read_state_dict

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"
KINDS = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": "u2",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "u1",
}


class StorageStub:
    def __init__(self, key, numbers, kind="Float", length=None):
        self.key, self.kind = key, kind
        self.numbers = np.asarray(numbers, KINDS[kind])
        self.length = self.numbers.size if length is None else length


class TensorStub:
    """A tensor that is pickled as a call of torch._utils._rebuild_tensor_v2."""

    def __init__(self, storage, shape, strides, offset=0):
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


def tensor(key, array, kind="Float"):
    array = np.asarray(array, KINDS[kind])
    strides = tuple(step // array.itemsize for step in array.strides)
    return TensorStub(StorageStub(key, array.ravel(), kind), array.shape, strides)


class Called:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def stand_in(module, name, base=()):
    made = type(name, base, {"__module__": module.__name__, "__qualname__": name})
    setattr(module, name, made)
    return made


@pytest.fixture
def torch(monkeypatch):
    """A module in place of torch, with the names that torch.save writes."""
    torch = types.ModuleType("torch")
    torch._utils = types.ModuleType("torch._utils")
    for kind in KINDS:
        stand_in(torch, f"{kind}Storage")
    stand_in(torch, "Size")
    stand_in(torch._utils, "_rebuild_tensor_v2")
    stand_in(torch._utils, "_rebuild_tensor")
    stand_in(torch._utils, "_rebuild_parameter")
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", torch._utils)
    return torch


def archive(path, pickled, members=None, order="little", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        if order:
            file.writestr("archive/byteorder", order)
        for key, raw in (members or {}).items():
            file.writestr(f"archive/data/{key}", raw)
    return path


def save(path, value, *, protocol=2, order="little", drop=(), **options):
    """Write a value with TensorStubs as torch.save does."""
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if not isinstance(item, StorageStub):
                return None
            storages[item.key] = item.numbers.astype(item.numbers.dtype.newbyteorder(order[0]))
            kind = getattr(sys.modules["torch"], f"{item.kind}Storage")
            return ("storage", kind, item.key, "cpu", item.length)

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    members = {key: numbers.tobytes() for key, numbers in storages.items() if key not in drop}
    return archive(path, buffer.getvalue(), members, order, **options)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["little", "big"])
def test_every_dtype_and_byte_order_is_read(torch, tmp_path, protocol, order):
    values = {
        kind: np.arange(6).reshape(2, 3) for kind in KINDS if kind not in ("BFloat16", "Bool")
    }
    state = {kind: tensor(kind, array, kind) for kind, array in values.items()}
    state["Bool"] = tensor("b", [1, 0], "Bool")
    state["BFloat16"] = tensor("f", [0x3F80, 0xC040, 0x7F80], "BFloat16")
    path = save(tmp_path / "m.pth", state, protocol=protocol, order=order)
    read = read_state_dict(path)
    for kind, array in values.items():
        assert read[kind].dtype == np.dtype(KINDS[kind])
        np.testing.assert_array_equal(read[kind], array)
    np.testing.assert_array_equal(read["Bool"], np.array([True, False]))
    np.testing.assert_array_equal(read["BFloat16"], np.float32([1, -3, np.inf]))
    assert read["BFloat16"].dtype == np.float32
    assert not any(array.flags.writeable for array in read.values())


def test_tensors_are_views_of_their_storages(torch, tmp_path):
    base = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    shared = StorageStub("0", base.ravel())
    state = OrderedDict(
        whole=TensorStub(shared, (6, 5, 4), (20, 4, 1)),
        turned=TensorStub(shared, (4, 6, 5), (1, 20, 4)),
        sliced=TensorStub(shared, (2, 5, 3), (40, 4, 1), offset=21),
        scalar=TensorStub(shared, (), (), offset=119),
        empty=TensorStub(shared, (0, 3), (3, 1)),
        one=TensorStub(shared, (1, 2), (10**18, 1), offset=118),  # the stride is never used
        parameter=Called(
            torch._utils._rebuild_parameter,
            TensorStub(shared, (4,), (1,)),
            True,
            OrderedDict(),
        ),
    )
    state._metadata = {"": {"version": 1}}  # as module.state_dict() does; it is pickled with BUILD
    read = read_state_dict(save(tmp_path / "m.pth", {"state_dict": state}))
    np.testing.assert_array_equal(read["whole"], base)
    np.testing.assert_array_equal(read["turned"], base.transpose(2, 0, 1))
    np.testing.assert_array_equal(read["sliced"], base[1:5:2, :, 1:])
    np.testing.assert_array_equal(read["scalar"], base[5, 4, 3])
    assert read["scalar"].shape == () and read["empty"].shape == (0, 3)
    np.testing.assert_array_equal(read["one"], base[5:, 4, 2:])
    np.testing.assert_array_equal(read["parameter"], base[0, 0])
    assert np.shares_memory(read["whole"], read["turned"])


def test_empty_storage_gives_an_empty_array(torch, tmp_path):
    read = read_state_dict(save(tmp_path / "m.pth", {"x": tensor("0", np.zeros((0, 4)))}))
    assert read["x"].shape == (0, 4) and read["x"].dtype == np.float32


def test_prefixes_of_names_are_removed(torch, tmp_path, monkeypatch):
    def names(state):
        return {k: v.item() for k, v in read_state_dict(save(tmp_path / "m.pth", state)).items()}

    one, two = tensor("1", [1]), tensor("2", [2])
    assert names({"a": one, "b": two, "epoch": 3, 7: two}) == {"a": 1, "b": 2}
    assert names({"state_dict": {"module.a": one, "x": None}, "b": two}) == {"a": 1}
    assert names({"model.a": one, "model.module.b": two}) == {"a": 1, "b": 2}
    assert names({"model.a": one, "avg_model.a": two, "loss.b": one}) == {"a": 2}
    assert names({"module.model.a": one}) == {"a": 1}
    with pytest.raises(UserError, match="two tensors have the name 'a'"):
        names({"model.a": one, "module.a": two})
    for nothing in ({}, {"state_dict": {}}, {"a": 1}, one, [one], None):
        with pytest.raises(UserError, match="contains no named tensors"):
            names(nothing)


def test_lightning_checkpoint_gives_its_averaged_weights(torch, tmp_path, monkeypatch):
    parts = ("pytorch_lightning", "callbacks", "model_checkpoint")
    for depth in (1, 2, 3):
        name = ".".join(parts[:depth])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    label = stand_in(sys.modules[".".join(parts)], "ModelCheckpoint")
    checkpoint = {
        "epoch": 3,
        "callbacks": {label: {"best_model_score": tensor("5", 0.5), "dirpath": "/x", "k": {}}},
        "optimizer_states": [{"state": {0: {"step": 2, "m": tensor("6", [1, 2])}}, "lr": 0.1}],
        "lr_schedulers": [{"milestones": Counter([2, 3]), "_last_lr": [0.1]}],
        "state_dict": OrderedDict({"avg_model.a": tensor("0", [4]), "model.a": tensor("1", [5])}),
    }
    assert read_state_dict(save(tmp_path / "m.ckpt", checkpoint))["a"].item() == 4


S = StorageStub


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: TensorStub(S("0", [1, 2]), (3,), (1,)), "beyond"),
        (lambda: TensorStub(S("0", [1, 2]), (2,), (1,), offset=1), "beyond"),
        (lambda: TensorStub(S("0", [1, 2]), (), (), offset=2), "beyond"),
        (lambda: TensorStub(S("0", [1] * 8), (2, 2), (7, 1)), "beyond"),
        (lambda: TensorStub(S("0", [1, 2]), (2,), (2**62,)), "beyond"),
        (lambda: TensorStub(S("0", []), (), ()), "beyond"),
        (lambda: TensorStub(S("0", [1, 2]), (10**9,), (0,)), "repeats"),
        (lambda: TensorStub(S("0", [1, 2]), (2**40, 2**40), (0, 0)), "repeats"),
        (lambda: TensorStub(S("0", [1, 2]), (2,), (-1,), offset=1), "impossible"),
        (lambda: TensorStub(S("0", [1, 2]), (1,), (1,), offset=-1), "impossible"),
        (lambda: TensorStub(S("0", [1, 2]), (-1,), (1,)), "impossible"),
        (lambda: TensorStub(S("0", [1, 2]), (2**70,), (0,)), "impossible"),
        (lambda: TensorStub(S("0", [1, 2]), (1.0,), (1,)), "impossible"),
        (lambda: TensorStub(S("0", []), (0, 2**40), (0, 0)), "impossible"),
        (lambda: TensorStub(S("0", [1, 2]), (True,), (1,)), "impossible"),
        (lambda: TensorStub(S("0", [1, 2]), (2,), (True,)), "impossible"),
        (lambda: TensorStub(S("0", [1, 2]), (1,), (1,), offset=True), "impossible"),
        (lambda: TensorStub(S("0", [1], length=True), (1,), (1,)), "impossible"),
        (lambda: TensorStub(S("0", [1, 2]), (2,), (1, 1)), "unexpected arguments"),
        (lambda: TensorStub(S("0", [1, 2]), (1,) * 40, (1,) * 40), "unexpected arguments"),
        (lambda: TensorStub(S("0", [1, 2], length=3), (2,), (1,)), "a length that does not"),
        (
            lambda: TensorStub(S("0", [1, 2], length=10**12), (2,), (1,)),
            "a length that does not",
        ),
        (lambda: TensorStub(S("lost", [1, 2]), (2,), (1,)), "no member 'archive/data/lost'"),
        (lambda: TensorStub(None, (2,), (1,)), "unexpected arguments"),
    ],
)
def test_invalid_tensors_are_refused(torch, tmp_path, build, reason):
    path = save(tmp_path / "m.pth", {"a": build()}, drop=("lost",))
    with pytest.raises(UserError, match=reason) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


COMMAND = text("touch ran")
FOREIGN = {
    "global": (b"cos\nsystem\n" + COMMAND + b"\x85R.", "os.system"),
    "only named": (b"cos\nsystem\n.", "os.system"),
    "stack global": (
        b"\x80\x04" + text("builtins") + text("eval") + b"\x93" + COMMAND + b"\x85R.",
        "builtins.eval",
    ),
    "instance": (b"(" + COMMAND + b"ios\nsystem\n.", "os.system"),
    "object": (b"(cos\nsystem\n" + COMMAND + b"o.", "os.system"),
    "dotted": (b"\x80\x04" + text("torch") + text("serialization.load") + b"\x93.", "torch.seri"),
    "escapes": (b"cos\n\x1b[2Jsystem\n.", r"'os.\\x1b\[2Jsystem'"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_code_is_refused_by_name(tmp_path, monkeypatch, case):
    pickled, name = FOREIGN[case]
    monkeypatch.chdir(tmp_path)
    reason = f"m.pth: '?{name}.* is not allowed in a weights file; nothing was executed"
    with pytest.raises(UserError, match=reason):
        read_state_dict(archive(tmp_path / "m.pth", pickled))
    assert [file.name for file in tmp_path.iterdir()] == ["m.pth"]


MAPPING = b"ccollections\nOrderedDict\n"
DAMAGED = {
    "empty": b"",
    "no stop": b"}",
    "nothing on the stack": b".",
    "no mark": b"}u.",
    "no memo": b"h\x07.",
    "memo with a gap": b"}r\xff\xff\xff\xff.",
    "memo of text": b"}p0\n.",
    "long key": b"}" + text("a" * 1001) + b"Ns.",
    "broken opcode": b"\xff.",
    "attributes of a class": MAPPING + b"}b.",
    "new object": MAPPING + b")\x81.",
    "extension registry": b"\x82\x01.",
    "call of a string": text("x") + b")R.",
    "call of a storage": b"ctorch\nFloatStorage\n)R.",
    "call of a label": b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n)R.",
    "a mapping of numbers": MAPPING + b"K\x01\x85R.",
    "key without value": b"}(K\x01u.",
    "unhashable key": b"}]K\x01s.",
    "tuple as key": b"}K\x01\x85K\x01s.",
    "items into a number": b"K\x01" + text("a") + b"K\x02s.",
    "false persistent id": text("storage") + b"Q.",
    "text persistent id": b"P0\n.",
    "claims 2**60 bytes": b"\x8e" + (2**60).to_bytes(8, "little") + b"ab.",
    "claims 2**60 bytes, mutable": b"\x96" + (2**60).to_bytes(8, "little") + b"ab.",
    "huge number": b"I" + b"9" * 5000 + b"\n.",
    "no text": b"X\x02\x00\x00\x00\xff\xfe.",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_pickles_are_refused(tmp_path, case):
    with pytest.raises(UserError, match=r"m\.pth: damaged pickle"):
        read_state_dict(archive(tmp_path / "m.pth", DAMAGED[case]))


def test_recursive_values_are_harmless(torch, tmp_path):
    # A dict inside itself, and 60 doublings; all of them are small values.
    doublings = text("b") + b")" + b"q\x01h\x01\x86" * 60 + b"s"
    path = archive(tmp_path / "m.pth", b"}q\x00" + text("a") + b"h\x00s" + doublings + b".")
    with pytest.raises(UserError, match="contains no named tensors"):
        read_state_dict(path)


def test_damaged_archives_are_refused_before_their_tensors_are_read(torch, tmp_path, monkeypatch):
    path = tmp_path / "m.pth"
    good = {"a": tensor("0", np.arange(2000))}

    def refused(reason):
        with pytest.raises(UserError, match=f"m.pth.*{reason}"):
            read_state_dict(path)

    save(path, good, compression=zipfile.ZIP_DEFLATED)
    refused("compressed")
    save(path, good)
    raw = path.read_bytes()
    for length in (5, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        refused("damaged")
    position = raw.index(np.arange(2000, dtype=np.float32).tobytes())
    path.write_bytes(raw[: position + 900] + b"\x99" + raw[position + 901 :])
    refused("damaged")
    entry = raw.rindex(b"archive/data/0") - 46  # in the central directory, with both sizes
    claimed = (10**9).to_bytes(4, "little") * 2
    path.write_bytes(raw[: entry + 20] + claimed + raw[entry + 28 :])
    refused("more bytes than the file")
    for content in (b"", b"PK", b"not a zip", pickle.dumps({"a": 1}), b"<html>"):
        path.write_bytes(content)
        refused("neither a zip archive written by torch.save")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme", "x")
    refused("not written by torch.save: it has no NAME/data.pkl")
    archive(path, b"}.", order="middle")
    refused("byteorder 'middle'")
    monkeypatch.setattr(torch_archive, "PICKLE_LIMIT", 10)
    save(path, good)
    refused("over 10 bytes")
    path.unlink()
    refused("No such file")
    path.mkdir()
    refused("is not a regular file")


def test_archive_without_byteorder_is_little_endian(torch, tmp_path):
    path = save(tmp_path / "m.pth", {"a": tensor("0", [2])})
    with zipfile.ZipFile(path) as file:
        pickled, raw = file.read("archive/data.pkl"), file.read("archive/data/0")
    assert read_state_dict(archive(path, pickled, {"0": raw}, order=None))["a"].item() == 2


def assert_altered_bytes_give_user_errors_only(path, raw):
    """Change random bytes of a file 400 times; reading it succeeds or names the file."""
    dice = random.Random(0)
    for _ in range(400):
        altered = bytearray(raw)
        for _ in range(dice.choice((1, 1, 4))):
            altered[dice.randrange(len(raw))] = dice.choice((0, 1, 0x7F, 0xFF, dice.randrange(256)))
        path.write_bytes(altered)
        try:
            read_state_dict(path)
        except UserError as error:
            assert str(error).startswith(str(path))


def test_altered_bytes_give_user_errors_only(torch, tmp_path):
    path = save(tmp_path / "m.pth", {f"a{i}": tensor(str(i), [i, 2]) for i in range(3)})
    assert_altered_bytes_give_user_errors_only(path, path.read_bytes())


@pytest.mark.parametrize(
    ("name", "entries", "total"),
    [("nanodet-m_320", 421, 90132.9552288529), ("nanodet-plus-m_320", 645, 154870.32271933992)],
)
def test_published_weights_have_the_values_that_pytorch_reads(name, entries, total):
    path = WEIGHTS / f"{name}.pth"
    if not path.exists():
        pytest.skip(f"{name}.pth is not here")
    state = read_state_dict(path)
    assert len(state) == entries
    assert state["backbone.conv1.0.weight"].shape == (24, 3, 3, 3)
    # Sum of the absolute values that PyTorch 2.13 reads.
    np.testing.assert_allclose(sum(np.abs(v.astype(float)).sum() for v in state.values()), total)
