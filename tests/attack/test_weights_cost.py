"""Weights crafted to take time or memory: read or rejected within about a second."""

import os
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from nanodet_jax.config import Config, Model, check
from nanodet_jax.errors import UserError
from nanodet_jax.io import torch_archive, torch_names, torch_pickle, zip_limits
from nanodet_jax.io.npz import read_npz
from nanodet_jax.io.torch_archive import read_state_dict
from nanodet_jax.io.weights import load_weights
from nanodet_jax.models.nanodet import build_model
from nanodet_jax.state import abstract_variables
from tests.io.test_torch_archive import WEIGHTS, archive, text

LIMIT = 4  # seconds of processor time; each takes at most one
PRIME = 2**61 - 1  # the modulus of hashes of ints
MOST = torch_pickle.MAX_INSTRUCTIONS


def number(value):
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(raw)]) + raw


def colliding_keys():
    return b"}(" + b"".join(number(PRIME * i) + b"N" for i in range(1, 30_000)) + b"u."


def equal_long_keys():
    name = text("a" * 1_900_000)
    again = b"}" + name + b"q\x00Ns" + name + b"q\x01Ns"
    return again + b"h\x01Ns" * 60_000 + b"."


def shared_tensor(count):
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    tensor = storage + b"K\x01tQK\x00K\x01\x85K\x01\x85\x89}tR"
    build = b"ctorch._utils\n_rebuild_tensor_v2\n(" + tensor + b"q\x00\x85}("
    return build + b"".join(text(f"a{i}") + b"h\x00" for i in range(count)) + b"u."


PICKLES = {
    "keys whose hashes collide": (colliding_keys, "contains no named tensors"),
    "huge memo indexes": (
        lambda: b"}" + b"".join(b"p%d\n" % (PRIME * i) for i in range(1, 30_000)) + b".",
        "instruction PUT",
    ),
    "equal keys of 2 MB, compared 60,000 times": (equal_long_keys, "a key of 1900000 characters"),
    "4 million tuples": (lambda: b")" + b"\x85" * 4_000_000 + b".", "over 400000 instructions"),
    "4 million dicts": (lambda: b"}" * 4_000_000 + b".", "over 400000 instructions"),
    "tuples nested to the limit": (
        lambda: b")" + b"\x85" * (MOST - 2) + b".",
        "contains no named tensors",
    ),
    "lists nested to the limit": (
        lambda: b"]" * (MOST // 2) + b"a" * (MOST // 2 - 1) + b".",
        "contains no named tensors",
    ),
    "dicts nested to the limit": (
        lambda: b"}" + (text("a") + b"}") * (MOST // 3 - 1) + b"s" * (MOST // 3 - 1) + b".",
        "contains no named tensors",
    ),
    "a list extended by itself": (
        lambda: b"]q\x00" + b"(h\x00h\x00e" * (MOST // 4 - 2) + b".",
        "contains no named tensors",
    ),
    "a number of 4 MB": (
        lambda: b"\x8b" + (4_000_000).to_bytes(4, "little") + b"\xff" * 4_000_000 + b".",
        "contains no named tensors",
    ),
    "130,000 tensors of one storage": (lambda: shared_tensor(130_000), "has 130000 tensors"),
    "tensors that share a number": (lambda: shared_tensor(9), "share too many elements"),
}


def refusal(read, path):
    """Return the error message and the seconds of processor time until it was raised."""
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value), time.process_time() - start


@pytest.mark.parametrize("case", PICKLES)
def test_costly_pickle_is_rejected_within_seconds(tmp_path, case):
    make, reason = PICKLES[case]
    path = archive(tmp_path / "m.pth", make(), {"0": bytes(4)})
    message, seconds = refusal(read_state_dict, path)
    assert reason in message and message.startswith(str(path)) and len(message) < 500
    assert seconds < LIMIT


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="shared/weights is absent")
def test_limits_accept_ten_times_the_published_weights(monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_INSTRUCTIONS", MOST // 10)
    monkeypatch.setattr(torch_archive, "MAX_TENSORS", torch_archive.MAX_TENSORS // 10)
    monkeypatch.setattr(zip_limits, "MAX_LISTING", zip_limits.MAX_LISTING // 10)
    for path in WEIGHTS.glob("*.pth"):
        assert read_state_dict(path)


@pytest.mark.parametrize("read", [read_state_dict, read_npz])
def test_archive_of_100_000_members_is_rejected_before_they_are_listed(tmp_path, read):
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as file:
        for i in range(100_000):
            file.writestr(zipfile.ZipInfo(f"a/data/{i}"), b"")
    message, seconds = refusal(read, path)
    assert "list of members has" in message and message.startswith(str(path))
    assert seconds < 0.5


def with_fifo(path):
    os.mkfifo(path)


def with_device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".ckpt"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_fifo, "is not a regular file"),
        (with_device, "is not a regular file"),
        (lambda path: path.mkdir(), "is not the workdir of a run"),
    ],
    ids=["fifo", "device", "folder"],
)
def test_weights_that_are_not_a_regular_file_are_an_error(tmp_path, suffix, make, reason):
    path = tmp_path / f"x{suffix}"
    make(path)
    with pytest.raises(UserError, match=f"x{suffix}: {reason}"):
        load_weights(path)


def test_entries_that_share_memory_are_not_copied_before_their_shape_is_checked():
    like = abstract_variables(build_model(Model(num_classes=2, width=0.5)))
    one = np.broadcast_to(np.int8(0), (1 << 18,))  # a copy of one takes 1 MB as float32
    names = [torch_names.pytorch_name(path) for path in torch_names.flatten(like)]
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="wrong shape"):
            torch_names.convert(dict.fromkeys(names, one), like)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "model",
    [
        Model(kernel_size=31, num_classes=2),
        Model(stacked_convs=17, num_classes=2),
        Model(neck="ghost_pan", neck_blocks=17, num_classes=2),
        Model(neck="ghost_pan", kernel_size=7, neck_blocks=8, stacked_convs=8, num_classes=2),
    ],
    ids=["kernel", "head", "neck", "together"],
)
def test_network_that_takes_minutes_to_build_is_an_error(model):
    with pytest.raises(UserError, match=r"config\.model\.(kernel|stacked|neck)"):
        check(Config(model=model))


@pytest.mark.slow
def test_costliest_network_allowed_is_built_within_a_minute():
    model = Model(
        neck="ghost_pan",
        extra_level=True,
        share_cls_reg=False,
        num_classes=100_000,
        channels=4096,
        kernel_size=3,
        stacked_convs=16,
        neck_blocks=16,
        reg_max=255,
        width=2.0,
        guidance_channels=8192,
        guidance_convs=16,
    )
    check(Config(model=model, input_size=(32, 32)))
    start = time.process_time()
    abstract_variables(build_model(model), guided=True)
    assert time.process_time() - start < 60
