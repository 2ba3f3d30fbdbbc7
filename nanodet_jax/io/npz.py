"""Reading `.npz` files without pickle. The size of a file bounds the memory used."""

import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from nanodet_jax.errors import UserError
from nanodet_jax.io.zip_limits import open_zip

NOT_NPZ = "is damaged or not an .npz archive"


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the read-only arrays of a file by name. Their total size is at most the file's.

    Raises:
      UserError: naming the file, if it cannot be read, is damaged, or contains anything but
        uncompressed arrays of plain numbers, as `numpy.savez` writes them.
    """
    try:
        with open_zip(path, NOT_NPZ) as archive:
            members = archive.infolist()
            _check_names([info.filename for info in members])
            return {info.filename.removesuffix(".npy"): _read(archive, info) for info in members}
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    # zipfile, NumPy and Python's parser (for array headers) raise many types of error.
    except Exception as error:
        raise UserError(f"{path}: {NOT_NPZ} ({ascii(error)[:200]})") from error


def _check_names(names: list[str]) -> None:
    if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
        raise UserError("is not an .npz archive: its members are not arrays with unique names")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        shape, fortran, dtype = _read_header(member)
        if dtype.hasobject:
            name = f"{info.filename[:100]!a}"
            raise UserError(f"{name} contains Python objects; nothing was executed")
        raw = member.read()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(raw):
        raise UserError(f"{info.filename[:100]!a} has a length that does not match its shape")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns when it repairs a Python 2 header
        match npy.read_magic(member):
            case (1, 0):
                return npy.read_array_header_1_0(member)
            case (2, 0):
                return npy.read_array_header_2_0(member)
            case version:
                raise ValueError(f"unknown array format {version}")
