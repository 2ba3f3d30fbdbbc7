"""Program that decodes the arrays of a checkpoint. `checkpoint_arrays` runs it in a new process.

It reads a request from stdin, as json:

    {"arrays": [{"base": FOLDER, "key": NAME, "shape": [...], "dtype": "float32"}, ...],
     "memory": BYTES}

It writes READY to stdout once its libraries are loaded, then the bytes of each array in order. If
an array cannot be read, it writes the reason to stderr and exits with status DAMAGED.

Orbax stores an array as one zstd-compressed chunk `NAME/0.0...` in an OCDBT database, with one
database per part of a checkpoint. All other metadata in the files (`NAME/.zarray`, `_METADATA`) is
ignored. The request determines the shape, dtype, chunk size and codec, so no file can declare a
larger chunk, a different codec or a different location.

This file imports nothing from its package, because the import would take seconds.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

READY = b"\1"
DAMAGED = 3


def bound_memory(limit: int) -> None:
    """Limit this process to `limit` bytes more than it uses now. The limit applies only on Linux.

    An allocation beyond the limit aborts the process or raises MemoryError.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    data_pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit += data_pages * resource.getpagesize()
    for resource_type, wanted in ((resource.RLIMIT_DATA, limit), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(resource_type)[1]
        bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource_type, (bound, bound))


def metadata(shape: list[int], dtype: str) -> dict[str, Any]:
    """Return the content that Orbax gives `.zarray`. The whole array is one chunk."""
    return {
        "zarr_format": 2,
        "shape": shape,
        "chunks": [max(length, 1) for length in shape],
        "dtype": dtype if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<").str,
        "compressor": {"id": "zstd", "level": 1},
        "fill_value": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
    }


def main() -> int:
    """Read a request, and write its arrays. Return the exit status."""
    request = json.load(sys.stdin.buffer)
    import tensorstore

    one = {"limit": 1}  # otherwise memory grows with the number of cores
    context = tensorstore.Context({"file_io_concurrency": one, "data_copy_concurrency": one})
    bound_memory(request["memory"])
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    try:
        opened = [
            tensorstore.open(
                {
                    "driver": "zarr",
                    "kvstore": {
                        "driver": "ocdbt",
                        "base": {"driver": "file", "path": array["base"]},
                        "path": array["key"] + "/",
                    },
                    "metadata": metadata(array["shape"], array["dtype"]),
                },
                context=context,
                assume_metadata=True,
                open=True,
                read=True,
            )
            for array in request["arrays"]
        ]
        reads = [store.result().read(order="C") for store in opened]
        for read in reads:
            sys.stdout.buffer.write(np.asarray(read.result(), order="C").tobytes())
    except Exception as error:  # tensorstore raises many types
        print(" ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return DAMAGED
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # do not wait for threads that are still reading
