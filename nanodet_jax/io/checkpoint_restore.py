"""Restoring the arrays of one checkpoint, verified against the checksums saved with them."""

import math
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nanodet_jax.errors import UserError, first_line
from nanodet_jax.io import checksums
from nanodet_jax.io.checkpoint_arrays import read_arrays
from nanodet_jax.io.checkpoint_files import check_arrays, check_folder, read_record
from nanodet_jax.terminal import printable

RECORD = "record"  # part of a checkpoint: its format version and checksums
VERSION = 1  # of the checkpoint format
LIBRARY_LINE_LIMIT = 120  # characters of a library's message that we quote
OS_ERROR = re.compile(r"os_error_code='(\d{1,9})'")  # in messages of TensorStore


class DamagedCheckpointError(UserError):
    """The content of a checkpoint is not what was saved."""


def restore(folder: Path, parts: dict[str, Any]) -> Any:
    """Restore parts of a checkpoint.

    `parts` alone determines which arrays are read, and their sizes. The array descriptions in the
    files are only compared with `parts`.

    Args:
      folder: folder of the checkpoint.
      parts: a tree of arrays, or of their shapes and dtypes, for each part.

    Returns:
      `parts` with the saved arrays.

    Raises:
      DamagedCheckpointError: if an array cannot be read or differs from what was saved.
      UserError: if the checkpoint was saved with a different model or optimizer.
    """
    requested = checksums.flatten(parts)
    size = sum(
        math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in requested.values()
    )
    try:
        check_folder(folder, len(requested), size)
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{folder}: is damaged ({one_line(error)})") from error
    saved = {
        name: description
        for name, description in _read_descriptions(folder).items()
        if name.partition("/")[0] in parts
    }
    mismatch = checksums.find_structure_mismatch(saved, parts)
    if mismatch:
        raise UserError(
            f"{folder}: does not fit the model or optimizer of this config ({mismatch}); use the "
            "config of the workdir, or a different workdir"
        )
    try:
        arrays = read_arrays(folder, requested)
    except ValueError as error:
        raise DamagedCheckpointError(f"{folder}: is damaged ({one_line(error)})") from error
    restored = jax.tree.unflatten(jax.tree.structure(parts), arrays.values())
    mismatch = checksums.find_content_mismatch(saved, restored)
    if mismatch:
        raise DamagedCheckpointError(f"{folder}: is damaged ({mismatch})")
    return restored


def _read_descriptions(folder: Path) -> dict[str, Any]:
    """Return the descriptions of all arrays in a checkpoint, by name."""
    try:
        record = read_record(folder / RECORD / "metadata")
        if record["version"] == VERSION:
            return check_arrays(record)
    except (OSError, ValueError) as error:
        reason = f"its {RECORD} cannot be read: {one_line(error)}"
        raise DamagedCheckpointError(f"{folder}: is damaged ({reason})") from error
    raise UserError(
        f"{folder}: uses version {printable(str(record['version']), 20)} of the checkpoint format, "
        f"but this program reads version {VERSION}; use the nanodet_jax version that wrote it"
    )


def one_line(error: BaseException) -> str:
    """Return the most useful line of an error from the operating system, Orbax or TensorStore."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := OS_ERROR.search(str(error)):
        return os.strerror(int(code[1]))
    line = printable(first_line(error), 10 * LIBRARY_LINE_LIMIT)
    # TensorStore's messages start with the operation and end with the system's error message.
    return line if len(line) <= LIBRARY_LINE_LIMIT else f"... {line[-LIBRARY_LINE_LIMIT:]}"
