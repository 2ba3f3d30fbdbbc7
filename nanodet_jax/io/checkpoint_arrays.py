"""Reading the arrays of a checkpoint from an untrusted source, with bounded memory and time.

Native code decodes the format: a tree of nodes (OCDBT) and chunks, both compressed. A node of a few
kilobytes can decode to gigabytes, because its keys share prefixes of up to 64 KiB, and zstd encodes
131072 repetitions of a byte in 4 bytes. The size of a node is known only after decoding it. The
decoder therefore runs in a separate process, `array_reader`. If it needs too much memory, crashes
or hangs, only that process ends, and this module raises an error. The process takes about 0.3 s,
mostly to load numpy and tensorstore. It reads only the arrays, not Orbax's own metadata.
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

# Memory limit of the reader in bytes: a constant for threads and buffers, plus a multiple of the
# size of the arrays, for copies of them and of the compressed data. Restoring nanodet-m (11.5 MB)
# takes 60 MB.
MEMORY = 256 << 20
MEMORY_PER_BYTE = 8
TIMEOUT_S = 600
# By default NumPy's linear algebra and malloc use memory in proportion to the number of cores.
SINGLE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
CRASHES = {-6, -7, -11}  # SIGABRT (for example a failed allocation), SIGBUS and SIGSEGV


def read_arrays(folder: Path, requested: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return arrays of a checkpoint, by name.

    Args:
      folder: folder of the checkpoint.
      requested: objects with `shape` and `dtype`. Their keys are names of the form
        "PART/KEY/KEY...".

    Raises:
      ValueError: if an array cannot be read, or needs more memory than its shape allows.
      UserError: if the reader fails for a reason other than the content of the checkpoint.
    """
    arrays = []
    for name, like in requested.items():
        part, _, path = name.partition("/")
        arrays.append(
            {
                "base": (folder / part).as_posix() + "/",
                "key": path.replace("/", "."),
                "shape": list(like.shape),
                "dtype": np.dtype(like.dtype).name,
            }
        )
    sizes = [math.prod(like.shape) * np.dtype(like.dtype).itemsize for like in requested.values()]
    memory = MEMORY + MEMORY_PER_BYTE * sum(sizes)
    content = memoryview(_run({"arrays": arrays, "memory": memory}, folder))
    if len(content) != sum(sizes):
        raise ValueError(f"its arrays have {len(content)} bytes, not {sum(sizes)}")
    restored, start = {}, 0
    for (name, like), size in zip(requested.items(), sizes):
        flat = np.frombuffer(content[start : start + size], like.dtype)
        restored[name] = flat.reshape(like.shape).copy()  # aligned and writable
        start += size
    return restored


def _run(request: dict[str, Any], folder: Path) -> bytes:
    # -P: do not search the folder of array_reader.py for modules.
    command = [sys.executable, "-P", array_reader.__file__]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=TIMEOUT_S,
            env=os.environ | SINGLE_THREAD | {"PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{folder}: could not be read within {TIMEOUT_S} s; copy the workdir to a faster disk"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: sys.executable is unknown
        raise UserError(f"{folder}: cannot start {command[0]} to read it: {error}") from error
    reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2].strip()
    reason = reason or "no message"
    ready = done.stdout.startswith(array_reader.READY)
    if ready and done.returncode in CRASHES:
        limit = f"{request['memory'] / 1e6:.0f} MB"
        raise ValueError(f"decoding it crashes, or needs more than {limit} ({reason})")
    if ready and done.returncode == array_reader.DAMAGED:
        raise ValueError(reason)
    if not ready or done.returncode:
        raise UserError(
            f"{folder}: the process that reads it ended with status {done.returncode} "
            f"({reason}); try again with more free memory"
        )
    return done.stdout[len(array_reader.READY) :]
