"""Processes for measurements: each has its own memory peak, and loads programs from the cache.

A process that has compiled a program does not time it: its peak memory includes the compiler's, and
a heap fragmented by the compiler can make it slower than a process that loads the program.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from nanodet_jax.runtime.process import setup_process

CACHE = "JAX_COMPILATION_CACHE_DIR"  # read by `setup_process`, also in grandchildren


class CacheMiss(Exception):
    """A process had to compile a program that it should have loaded from the cache."""


def run_in_new_process(function: Callable[..., Any], *args: Any, cache: Path) -> Any:
    """Run `function(*args)` in a new process; return its result or raise its exception.

    Args:
      function: pickled by name, as are functions among the arguments.
      *args: its arguments.
      cache: folder of compiled programs.
    """
    with ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),  # inherits no memory of this process
        initializer=_prepare,
        initargs=(str(cache),),
    ) as pool:
        return pool.submit(function, *args).result()


def _prepare(cache: str) -> None:
    os.environ[CACHE] = cache
    # Leave device memory to the original, which may run at the same time.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    setup_process()


def run_with_warm_cache(function: Callable[..., Any], *args: Any, cache: Path) -> Any:
    """Run `function(*args, require_cached)` in a new process that finds its programs in the cache.

    With `require_cached`, the function raises `CacheMiss` if it had to compile. It is then called
    again, in a new process and without `require_cached`.
    """
    try:
        return run_in_new_process(function, *args, True, cache=cache)
    except CacheMiss:
        return run_in_new_process(function, *args, False, cache=cache)


def count_cached_files(cache: str | Path | None = None) -> int:
    """Count the files in a cache of compiled programs, by default the cache of this process."""
    folder = Path(cache or os.environ[CACHE])
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
