"""Reading weights from a PyTorch file (.pth, .pt, .ckpt) without PyTorch.

The pickle in the file is interpreted, but never executed.

torch.save writes a zip archive. NAME/data.pkl describes the tensors. Each NAME/data/<key> contains
the numbers of one storage. NAME/byteorder gives the byte order. `torch_legacy` describes the format
of PyTorch before 1.6.
"""

import math
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nanodet_jax.errors import UserError
from nanodet_jax.files import open_regular
from nanodet_jax.io import torch_legacy, torch_pickle
from nanodet_jax.io.torch_pickle import STORAGE_DTYPES, Storage, Tensor, quoted
from nanodet_jax.io.zip_limits import open_zip
from nanodet_jax.terminal import printable

PICKLE_LIMIT = 4 << 20  # bytes; a pickle of 645 tensors takes 80 thousand
MAX_TENSORS = 20_000  # more than the deepest network that config.check accepts has
MAX_SHARING = 4  # maximum number of tensor elements per stored element
NOT_ARCHIVE = (
    "is neither a zip archive written by torch.save nor a file in its older format; download it "
    "again"
)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors in a file that torch.save or Lightning wrote.

    Use the file's `state_dict` if it has one, otherwise the whole file. If a Lightning checkpoint
    has averaged weights (`avg_model.`), read only these, as the original does. Remove the prefixes
    `avg_model.`, `model.` and `module.` from names, and skip entries other than tensors.

    Returns:
      Read-only arrays by name, with PyTorch's shapes and dtypes, except that bfloat16 becomes
      float32. Tensors that share a storage share memory.

    Raises:
      UserError: naming the file, if it cannot be read, is damaged, has another format, contains
        anything but tensors and plain values, or has no tensors.
    """
    try:
        with _open(path) as file:
            if file.read(len(torch_legacy.START)) == torch_legacy.START:
                return _read_legacy(file)
        with open_zip(path, NOT_ARCHIVE) as archive:
            return _read(archive)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # zipfile raises many types of error for a truncated or altered file. Such a file can also
    # contain an invalid position; seeking to it raises an OSError without an error number.
    except (
        zipfile.BadZipFile,
        EOFError,
        ValueError,
        struct.error,
        RuntimeError,
        OverflowError,
    ) as error:
        raise UserError(
            f"{path}: damaged archive ({printable(str(error))}); download it again"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if not pickles:
        raise UserError(
            "is a zip archive, but was not written by torch.save: it has no NAME/data.pkl"
        )
    if len(pickles) > 1:
        several = f"{quoted(pickles[0])} and {quoted(pickles[1])}"
        raise UserError(f"damaged archive: it has more than one NAME/data.pkl: {several}")
    root = pickles[0].removesuffix("data.pkl")
    if members[pickles[0]].file_size > PICKLE_LIMIT:
        raise UserError(f"data.pkl has over {PICKLE_LIMIT} bytes, too many for weights")
    order = "little"  # PyTorch before 2.1 writes no byteorder
    if f"{root}byteorder" in members:
        order = archive.read(f"{root}byteorder")[:8].decode("ascii", "replace")
    if order not in ("little", "big"):
        raise UserError(f"unknown byteorder {quoted(order)}")

    tensors = _unwrap(torch_pickle.interpret(archive.read(pickles[0])))
    arrays: dict[str, np.ndarray] = {}
    for key, storage in _storages(tensors).items():
        name = f"{root}data/{key}"
        if name not in members:
            raise UserError(f"damaged archive: it has no member {quoted(name)}")
        if (
            members[name].file_size
            != storage.length * np.dtype(STORAGE_DTYPES[storage.kind]).itemsize
        ):
            raise UserError(
                f"damaged archive: {quoted(name)} has a length that does not match its storage"
            )
        arrays[key] = _numbers(archive.read(name), storage.kind, order)
    return _views(tensors, arrays)


def _read_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    value, positions = torch_legacy.locate(file, PICKLE_LIMIT)
    tensors = _unwrap(value)
    arrays: dict[str, np.ndarray] = {}
    for key, storage in _storages(tensors).items():
        if key not in positions:
            raise UserError(f"damaged file: it has no storage {quoted(key)}")
        file.seek(positions[key])
        raw = file.read(storage.length * np.dtype(STORAGE_DTYPES[storage.kind]).itemsize)
        arrays[key] = _numbers(raw, storage.kind, "little")
    return _views(tensors, arrays)


def _views(tensors: dict[str, Tensor], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors as views of the arrays of their storages."""
    views = {name: _view(name, each, arrays[each.storage.key]) for name, each in tensors.items()}
    # Without this limit, copies of the tensors could take many times the size of the file.
    stored = sum(array.size for array in arrays.values())
    if sum(view.size for view in views.values()) > MAX_SHARING * stored:
        raise UserError("its tensors share too many elements; save contiguous copies")
    return views


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def _storages(tensors: dict[str, Tensor]) -> dict[str, Storage]:
    """Return the storages of all tensors by key."""
    return {tensor.storage.key: tensor.storage for tensor in tensors.values()}


def _numbers(raw: bytes, kind: str, order: str) -> np.ndarray:
    stored = np.dtype(STORAGE_DTYPES[kind]).newbyteorder(">" if order == "big" else "<")
    numbers = np.frombuffer(raw, stored)
    if kind == "torch.BFloat16Storage":  # the upper half of a float32
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    elif kind == "torch.BoolStorage":
        numbers = numbers != 0
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


def _view(name: str, tensor: Tensor, storage: np.ndarray) -> np.ndarray:
    """Return a tensor as a view of its storage, after checking that it lies within the storage."""
    shape, strides = tensor.shape, tensor.strides
    elements = math.prod(shape)
    last = tensor.offset + sum((size - 1) * step for size, step in zip(shape, strides))
    if elements and last >= len(storage):
        raise UserError(f"tensor {quoted(name)} extends beyond its storage")
    # With a stride of 0, a small file could declare a tensor of any size. Weights never have one.
    if elements > len(storage):
        raise UserError(f"tensor {quoted(name)} repeats elements; save a contiguous copy")
    if not elements:
        if math.prod(size or 1 for size in shape) >= 2**31:
            raise UserError(f"tensor {quoted(name)} has an impossible shape")
        return np.zeros(shape, storage.dtype)
    width = storage.dtype.itemsize
    # PyTorch gives a dimension of size 1 an arbitrary stride, which is never used.
    steps = tuple(step * width if size > 1 else 0 for size, step in zip(shape, strides))
    view: np.ndarray = np.ndarray(shape, storage.dtype, storage, tensor.offset * width, steps)
    view.flags.writeable = False
    return view


def _unwrap(value: Any) -> dict[str, Tensor]:
    """Return the tensors of the state dict in `value`, by name without prefixes."""
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    state = [
        (key.removeprefix("module."), entry)
        for key, entry in (value.items() if isinstance(value, dict) else ())
        if isinstance(key, str) and isinstance(entry, Tensor)
    ]
    if not state:
        raise UserError("contains no named tensors: it is neither a state dict nor a checkpoint")
    averaged = any(name.startswith("avg_model.") for name, _ in state)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state:
        if averaged and not name.startswith("avg_model."):
            continue
        for prefix in ("avg_model.", "model.", "module."):
            name = name.removeprefix(prefix)
        if name in tensors:
            raise UserError(f"two tensors have the name {quoted(name)} without their prefixes")
        tensors[name] = tensor
    if len(tensors) > MAX_TENSORS:
        raise UserError(f"has {len(tensors)} tensors; the limit is {MAX_TENSORS}")
    return tensors
