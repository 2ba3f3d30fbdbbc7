"""Malicious weight files are refused with the reason, without executing code or using much memory.

Each file is loaded with `load_weights`, as users do. Executing its code, or using a member's name
as a path, would write another file, the canary.
"""

import functools
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nanodet_jax.config import Config, Model
from nanodet_jax.errors import UserError
from nanodet_jax.io import torch_names
from nanodet_jax.io.npz import read_npz
from nanodet_jax.io.torch_archive import read_state_dict
from nanodet_jax.io.weights import ABOUT, describe, load_weights
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables
from tests.io.test_torch_archive import StorageStub as Stored
from tests.io.test_torch_archive import TensorStub, archive, save, text, torch  # noqa: F401

MEMORY = 4e6  # bytes of memory to refuse a file, in addition to the file itself
CONFIG = Config(model=Model(width=0.5, num_classes=2))


class Canary:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def call(module, name, canary, by=b"R"):
    """Return a pickle that calls a function with the command to write the canary."""
    return f"c{module}\n{name}\n".encode() + text(f"touch {canary}") + b"\x85" + by + b"."


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(header, content=b"", version=b"\x01\x00"):
    """Return an .npy file with a given header."""
    line = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(line)) + line + content


@functools.cache
def sound_arrays():
    variables = abstract_variables(build_model(CONFIG.model))
    return {
        name: npy(np.zeros(leaf.shape, leaf.dtype))
        for name, leaf in torch_names.flatten(variables).items()
    }


def weights(path, change=lambda arrays: None, about=lambda about: None, **options):
    """Write weights of this project, all zeros, with malicious changes."""
    arrays = dict(sound_arrays())
    described = json.loads(describe(CONFIG, ("cat", "dog")))
    replaced = about(described) or json.dumps(described)
    arrays[ABOUT] = npy(np.frombuffer(replaced.encode(), np.uint8))
    change(arrays)
    with zipfile.ZipFile(path, "w", options.pop("compression", zipfile.ZIP_STORED)) as file:
        for name, content in arrays.items():
            file.writestr(f"{name}.npy", content)
    return path


SOME = "params/backbone/stem/kernel"


def replace_some(content):
    return lambda path, _: weights(path, lambda arrays: arrays.update({SOME: content}))


def set_model(**fields):
    return lambda path, _: weights(path, about=lambda a: a["config"]["model"].update(fields))


def patch_sizes(path, name, size):
    """Change the size of a member in the archive's directory."""
    raw = bytearray(path.read_bytes())
    place = raw.rindex(name.encode()) - 46
    raw[place + 20 : place + 28] = struct.pack("<II", size, size)
    path.write_bytes(raw)
    return path


def overlapping(path, _):
    """Write an archive with two directory entries for the bytes of one storage."""
    state = {"a": TensorStub(Stored("0", np.zeros(100_000)), (100_000,), (1,))}
    save(path, state)
    raw = path.read_bytes()
    end = raw.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", raw[end + 16 : end + 20])[0]
    names, entries = raw[start:end], []
    while names:
        length = 46 + sum(struct.unpack("<HHH", names[28:34]))
        entries.append(names[:length])
        names = names[length:]
    twin = next(entry for entry in entries if b"data/0" in entry).replace(b"data/0", b"data/1")
    listed = b"".join(entries) + twin
    tail = struct.pack("<HHII", len(entries) + 1, len(entries) + 1, len(listed), start)
    path.write_bytes(raw[:start] + listed + raw[end : end + 8] + tail + b"\0\0")
    return path


def with_members(path, names, pickled=b"}."):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name in names:
            file.writestr(name, b"canary")
    return path


def stored(size, shape, strides, **options):
    def make(path, _):
        return save(path, {"a": TensorStub(Stored("0", np.zeros(size), **options), shape, strides)})

    return make


def with_twin(path, name):
    """Add a member to an archive a second time."""
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr(name, npy(np.zeros(2)))
    return path


def bomb(path, _):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"}.")
        file.writestr("archive/data/0", bytes(200_000_000))
    return path


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
MAPPING = b"ccollections\nOrderedDict\n"
PTH = {
    "REDUCE of os.system": (
        lambda p, c: archive(p, call("os", "system", c)),
        "not allowed in a weights file",
    ),
    "REDUCE of eval": (
        lambda p, c: archive(p, call("builtins", "eval", c)),
        "not allowed in a weights file",
    ),
    "pickled class": (
        lambda p, c: archive(p, pickle.dumps(Canary(c))),
        "not allowed in a weights file",
    ),
    "pickled class, protocol 0": (
        lambda p, c: archive(p, pickle.dumps({"state_dict": Canary(c)}, 0)),
        "instruction DICT, which torch.save does not use",
    ),
    "OBJ": (
        lambda p, c: archive(p, b"(cos\nsystem\n" + text(f"touch {c}") + b"o."),
        "not allowed in a weights file",
    ),
    "INST": (
        lambda p, c: archive(p, b"(" + text(f"touch {c}") + b"ios\nsystem\n."),
        "not allowed in a weights file",
    ),
    "INST of a known class": (
        lambda p, c: archive(p, b"(icollections\nOrderedDict\n."),
        "damaged pickle",
    ),
    "NEWOBJ": (lambda p, c: archive(p, MAPPING + b")\x81."), "instruction NEWOBJ"),
    "dotted name": (
        lambda p, c: archive(p, call("torch", "_utils.os.system", c)),
        "not allowed in a weights file",
    ),
    "nested torch.load": (
        lambda p, c: archive(p, call("torch", "load", c)),
        "'torch.load' is not allowed in a weights file",
    ),
    "numpy's reconstruction": (
        lambda p, c: archive(p, pickle.dumps({"a": np.zeros(3)})),
        "not allowed in a weights file",
    ),
    "memo slot overwritten by a command": (
        lambda p, c: archive(p, MAPPING + b"q\x000" + text(f"touch {c}") + b"q\x000h\x00)R."),
        "damaged pickle",
    ),
    "empty memo slot": (lambda p, c: archive(p, b"h\x09)R."), "damaged"),
    "memo index of four billion": (
        lambda p, c: archive(p, b"}r\xff\xff\xff\xff."),
        "damaged pickle .*memo index 4294967295 after 0 entries",
    ),
    "value inside itself, doubled 60 times": (
        lambda p, c: archive(p, b"}q\x00" + text("b") + b")" + b"q\x01h\x01\x86" * 60 + b"s."),
        "contains no named tensors",
    ),
    "a shape of 2**80": (stored(2, (2**40, 2**40), (0, 0)), "repeats elements"),
    "no elements in 2**40 rows": (stored(0, (0, 2**40), (0, 0)), "impossible shape"),
    "a stride to the end of memory": (stored(2, (2,), (2**62,)), "beyond its storage"),
    "a storage of 10**12": (
        stored(2, (2,), (1,), length=10**12),
        "has a length that does not match its storage",
    ),
    "overlapping members": (overlapping, "claim more bytes than the file has"),
    "a member that claims 4 GB": (
        lambda p, c: patch_sizes(
            save(p, {"a": TensorStub(Stored("0", [1, 2]), (2,), (1,))}), "archive/data/0", 2**32 - 2
        ),
        "claim more bytes",
    ),
    "a zip bomb": (bomb, "compressed or encrypted members"),
    "members outside": (
        lambda p, c: with_members(p, [f"../{c.name}", str(c), "archive/data/../../x"]),
        "contains no named tensors",
    ),
    "a storage outside": (
        stored(2, (2,), (1,)),
        "not a NanoDet state_dict",
    ),
    "two descriptions": (
        lambda p, c: with_members(p, ["other/data.pkl"]),
        "more than one NAME/data.pkl: 'archive/data.pkl' and 'other/data.pkl'",
    ),
    "a description of 5 MB": (
        lambda p, c: archive(p, b"}" + b"0}" * (5 << 19) + b"."),
        "over 4194304 bytes",
    ),
    "pickle without an archive": (
        lambda p, c: p.write_bytes(pickle.dumps(Canary(c))) and p,
        "is neither a zip archive written by torch.save",
    ),
}
NPZ = {
    "objects": (
        replace_some(npy(np.array([None]))),
        "contains Python objects; nothing was executed",
    ),
    "objects that execute code": (
        lambda p, c: replace_some(npy(np.array([Canary(c)], object)))(p, c),
        "contains Python objects; nothing was executed",
    ),
    "code in a header": (
        lambda p, c: replace_some(
            npy_header(f"{{'descr': __import__('os').system('touch {c}'), 'shape': ()}}")
        )(p, c),
        "damaged",
    ),
    "a header of parentheses": (replace_some(npy_header("(" * 9000)), "damaged"),
    "a header of Python 2": (
        replace_some(npy_header("{'descr':'<f4','fortran_order':False,'shape':(2L,)}", bytes(8))),
        "damaged",
    ),
    "a header that ends early": (replace_some(npy_header("{'descr': '")), "damaged"),
    "a shape of 2**80": (
        replace_some(
            npy_header(f"{{'descr':'<f4','fortran_order':False,'shape':({2**40},{2**40})}}")
        ),
        "has a length that does not match its shape",
    ),
    "no elements in 2**62 rows": (
        replace_some(npy_header(f"{{'descr':'<f4','fortran_order':False,'shape':(0,{2**62})}}")),
        "npz",
    ),
    "a negative shape": (
        replace_some(
            npy_header("{'descr':'<f4','fortran_order':False,'shape':(-2,-4)}", bytes(32))
        ),
        "has a length that does not match its shape",
    ),
    "an element of 2**30 bytes": (
        replace_some(npy_header("{'descr':'|S1073741824','fortran_order':False,'shape':(1,)}")),
        "a length that does not match",
    ),
    "text for numbers": (
        replace_some(npy(np.full((3, 3, 3, 24), "a", "U1"))),
        "has the wrong shape or dtype",
    ),
    "a zip bomb": (
        lambda p, c: weights(
            p, lambda a: a.update(x=npy(np.zeros(25_000_000))), compression=zipfile.ZIP_DEFLATED
        ),
        "compressed or encrypted members",
    ),
    "a member that claims 1 GB": (
        lambda p, c: patch_sizes(weights(p), f"{SOME}.npy", 10**9),
        "claim more bytes than the file has",
    ),
    "a member outside": (
        lambda p, c: weights(p, lambda a: a.update({f"../{c.name}": npy(np.zeros(2))})),
        "is missing, unexpected",
    ),
    "an absolute member": (
        lambda p, c: weights(p, lambda a: a.update({str(c): npy(np.zeros(2))})),
        "is missing, unexpected",
    ),
    "an array twice": (
        lambda p, c: with_twin(weights(p), f"{SOME}.npy"),
        "not arrays with unique names",
    ),
    "a million channels": (set_model(channels=10**6), "config.model.channels=1000000: must be at"),
    "a billion layers": (set_model(stacked_convs=10**9), "config.model.stacked_convs"),
    "2**62 classes": (set_model(num_classes=2**62), "config.model.num_classes"),
    "deeply nested description": (
        lambda p, c: weights(p, about=lambda a: "[" * 100_000),
        "not a valid description of weights",
    ),
    "number of 5000 digits": (
        lambda p, c: weights(p, about=lambda a: '{"config": ' + "9" * 5000 + "}"),
        "not a valid description of weights",
    ),
    "more names than classes": (
        lambda p, c: weights(p, about=lambda a: a.update(class_names=["x"] * 1000)),
        "has 1000 class names, but config.model.num_classes=2",
    ),
}


def memory_taken(path):
    """Return the peak memory of Python and NumPy while the file is read, in bytes."""
    tracemalloc.start()
    try:
        (read_state_dict if path.suffix == ".pth" else read_npz)(path)
    except UserError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    ("suffix", "case"), [(".pth", case) for case in PTH] + [(".npz", case) for case in NPZ]
)
def test_hostile_weights_are_refused_with_the_reason(torch, tmp_path, monkeypatch, suffix, case):  # noqa: F811
    make, reason = (PTH if suffix == ".pth" else NPZ)[case]
    inner = tmp_path / "inner"
    inner.mkdir()
    canary = tmp_path / "canary"
    path: Path = make(inner / f"hostile{suffix}", canary)
    monkeypatch.chdir(inner)
    with pytest.raises(UserError, match=reason) as caught:
        load_weights(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert memory_taken(path) < MEMORY + 6 * path.stat().st_size
    assert sorted(tmp_path.rglob("*")) == [inner, path]


def test_weights_without_changes_load(tmp_path):
    loaded = load_weights(weights(tmp_path / "sound.npz"))
    assert loaded.class_names == ("cat", "dog")
    assert loaded.config.model == CONFIG.model
