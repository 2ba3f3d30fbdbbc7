"""The program that decodes the arrays of a checkpoint, run by `checkpoint_arrays` as a process.

It reads a request from stdin, as json:

    {"arrays": [{"base": FOLDER, "key": NAME, "shape": [...], "dtype": "float32"}, ...],
     "memory": BYTES}

It writes READY to stdout once its libraries are loaded, then the bytes of each array in turn. Where
an array cannot be read, the reason goes to stderr and the exit status is DAMAGED.

Orbax stores an array as one zstd-compressed chunk `NAME/0.0...` in an OCDBT database, one database
per part of a checkpoint. Everything else that the files say about an array (`NAME/.zarray`,
`_METADATA`) is ignored: shape, dtype, chunk and codec are those of the request. So no file can
declare a larger chunk, another codec or another place to read from.

This file imports nothing of its package, whose import takes seconds.
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
    """Let this process take `limit` bytes more than it has now; no effect except on Linux.

    Beyond that, an allocation fails, which ends the process or raises MemoryError.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    data_pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit += data_pages * resource.getpagesize()
    for what, wanted in ((resource.RLIMIT_DATA, limit), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(what, (bound, bound))


def metadata(shape: list[int], dtype: str) -> dict[str, Any]:
    """What Orbax writes to `.zarray`: one chunk, whatever the size."""
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
    request = json.load(sys.stdin.buffer)
    import tensorstore

    one = {"limit": 1}  # a thread for each core would take memory by the number of cores
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
    except Exception as error:  # tensorstore has many kinds
        print(" ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return DAMAGED
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # without a wait for threads that still read
