"""Reading the arrays of a checkpoint, which may come from a stranger, within bounds.

The format is decoded by native code: a tree of nodes (OCDBT) and chunks, both compressed. A node of
a few kilobytes can decode to gigabytes, as its keys share prefixes of up to 64 KiB and zstd repeats
a byte 131072 times for 4 bytes. To tell how large a node becomes takes a decoder of its own. So the
decoder runs as a process of its own, `array_reader`, where an excess, a crash or an endless read
ends that process and becomes an error here. It costs about 0.3 s, most of it to load numpy and
tensorstore; in turn only the arrays are read, and none of Orbax's own descriptions.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanodet_jax.errors import UserError
from nanodet_jax.io import array_reader

# What the reader may take: its threads and buffers, then several copies of each array and of the
# compressed data. Restoring nanodet-m (11.5 MB) takes 60 MB.
MEMORY = 256 << 20
MEMORY_PER_BYTE = 8
TIMEOUT_S = 600
# One thread each: numpy's linear algebra and malloc take memory by the number of cores.
FRUGAL = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
CRASHES = {-6, -7, -11}  # SIGABRT, as after a failed allocation, SIGBUS and SIGSEGV


def read_arrays(folder: Path, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of the checkpoint in `folder`, by the names that `checksums` gives them.

    Args:
      folder: of one step.
      wanted: by name, "PART/KEY/KEY...", anything with `shape` and `dtype`.

    Raises:
      ValueError: if an array cannot be read, or takes more memory than arrays of these shapes may.
      UserError: if the reader cannot be run, which says nothing of the checkpoint.
    """
    arrays = []
    for name, like in wanted.items():
        part, _, path = name.partition("/")
        arrays.append(
            {
                "base": (folder / part).as_posix() + "/",
                "key": path.replace("/", "."),
                "shape": list(like.shape),
                "dtype": np.dtype(like.dtype).name,
            }
        )
    sizes = [math.prod(like.shape) * np.dtype(like.dtype).itemsize for like in wanted.values()]
    memory = MEMORY + MEMORY_PER_BYTE * sum(sizes)
    content = memoryview(_run({"arrays": arrays, "memory": memory}, folder))
    if len(content) != sum(sizes):
        raise ValueError(f"its arrays have {len(content)} bytes, not {sum(sizes)}")
    restored, start = {}, 0
    for (name, like), size in zip(wanted.items(), sizes):
        flat = np.frombuffer(content[start : start + size], like.dtype)
        restored[name] = flat.reshape(like.shape).copy()  # aligned, and may be written to
        start += size
    return restored


def _run(request: dict[str, Any], folder: Path) -> bytes:
    # -P: the files beside this one are no modules to import by their short names.
    command = [sys.executable, "-P", array_reader.__file__]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=TIMEOUT_S,
            env=os.environ | FRUGAL | {"PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{folder}: could not be read within {TIMEOUT_S} s; copy the workdir to a faster disk"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: sys.executable is unknown
        raise UserError(f"{folder}: cannot start {command[0]} to read it: {error}") from error
    reason = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2].strip()
    reason = reason or "no message"
    ready = ended.stdout.startswith(array_reader.READY)
    if ready and ended.returncode in CRASHES:
        limit = f"{request['memory'] / 1e6:.0f} MB"
        raise ValueError(f"decoding it takes over {limit}, or crashes ({reason})")
    if ready and ended.returncode == array_reader.DAMAGED:
        raise ValueError(reason)
    if not ready or ended.returncode:
        raise UserError(
            f"{folder}: the process that reads it ended with status {ended.returncode} "
            f"({reason}); try again, with more memory free"
        )
    return ended.stdout[len(array_reader.READY) :]
