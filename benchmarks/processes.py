"""Processes to measure in: each with peaks of its own, and programs that come from the cache.

A process that has just compiled a program is not the one to time it in: it has held other memory,
and what the compiler left in the heap can make it run slower than one that loads the program.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from nanodet_jax.runtime.process import setup_process

CACHE = "JAX_COMPILATION_CACHE_DIR"  # `setup_process` uses it, in the children of a child too


class Compiled(Exception):
    """Raised in a process that was to load its programs, and had to compile some."""


def fresh(function: Callable[..., Any], *args: Any, cache: Path) -> Any:
    """What `function(*args)` returns or raises in a new process, set up by `setup_process`.

    Args:
      function: pickled by name, as whatever functions are among the arguments.
      *args: its arguments.
      cache: folder of compiled programs.
    """
    with ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),  # nothing of this process is copied
        initializer=_prepare,
        initargs=(str(cache),),
    ) as pool:
        return pool.submit(function, *args).result()


def _prepare(cache: str) -> None:
    os.environ[CACHE] = cache
    # What a process does not use of the device is for the original, which may run beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    setup_process()


def warm(function: Callable[..., Any], *args: Any, cache: Path) -> Any:
    """`fresh(function, *args, insist)` in a process that finds its programs in the cache.

    With `insist` the function is to raise `Compiled` if it had to compile; it is then called in
    another process, without.
    """
    try:
        return fresh(function, *args, True, cache=cache)
    except Compiled:
        return fresh(function, *args, False, cache=cache)


def cached_files(cache: str | Path | None = None) -> int:
    """How many files a cache of compiled programs has, by default that of this process."""
    folder = Path(cache or os.environ[CACHE])
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
