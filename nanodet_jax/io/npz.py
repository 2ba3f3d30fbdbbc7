"""This project's files of arrays (.npz), read without a pickle and within the file's own size."""

import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from nanodet_jax.errors import UserError
from nanodet_jax.io.zip_limits import open_zip

NO_ZIP = "is damaged or no .npz archive"


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name, read-only. They take no more memory than the file has bytes.

    Raises:
      UserError: naming the file, if it cannot be read, is damaged, or holds anything but arrays of
        plain numbers, not compressed, as `numpy.savez` writes them.
    """
    try:
        with open_zip(path, NO_ZIP) as archive:
            members = archive.infolist()
            _check_names([info.filename for info in members])
            return {info.filename.removesuffix(".npy"): _read(archive, info) for info in members}
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    # What zipfile, NumPy and Python's parser, which reads the headers, make of damaged bytes.
    except Exception as error:
        raise UserError(f"{path}: is damaged or no .npz archive ({ascii(error)[:200]})") from error


def _check_names(names: list[str]) -> None:
    if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
        raise UserError("is no .npz archive: its members are not arrays with a name each")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        shape, fortran, dtype = _read_header(member)
        if dtype.hasobject:
            raise UserError(f"{info.filename[:100]!a} holds Python objects; nothing was run")
        raw = member.read()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(raw):
        raise UserError(f"{info.filename[:100]!a} is not as long as its shape says")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy would mend headers of Python 2
        match npy.read_magic(member):
            case (1, 0):
                return npy.read_array_header_1_0(member)
            case (2, 0):
                return npy.read_array_header_2_0(member)
            case version:
                raise ValueError(f"array format {version}")
