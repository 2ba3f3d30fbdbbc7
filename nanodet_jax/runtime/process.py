"""Process-wide settings."""

import ctypes
import functools
import logging
from pathlib import Path

import cv2
from absl import logging as absl_logging

from nanodet_jax.runtime import compilation_cache


def setup_process(cache_dir: str | Path | None = None) -> None:
    """Set up a process that trains or evaluates. Call it before the first compilation.

    `train_and_evaluate`, `evaluate` and the command line call it. Call it in your own notebook or
    service to get the same speed and log filters. Importing the package or using a `Detector`
    changes no setting that other code in the process can see. This function sets:

    - malloc: glibc reuses large buffers instead of returning them to the system. Otherwise each
      training step on a CPU causes page faults for 500 MB. However, memory stays at its peak.
    - JAX's persistent compilation cache: kept in `cache_dir` if given, otherwise in the folder that
      you have configured (`jax.config.jax_compilation_cache_dir` or `$JAX_COMPILATION_CACHE_DIR`),
      and otherwise in `nanodet_jax` in your cache folder. JAX's thresholds for small programs
      are removed unless you have changed them.
    - absl's log: messages about exceptions in Orbax's threads are dropped, because the same
      exceptions are also raised in the main thread.
    - OpenCV: one thread per call, because `config.data.workers` threads already decode images. Its
      messages about damaged images are dropped, because this package reports these images by name.

    A second call changes nothing, except that a new `cache_dir` replaces the old one.

    Args:
      cache_dir: folder or bucket for compiled programs. A missing folder is created with
        access for this user only.

    Raises:
      UserError: if the folder that you chose cannot be created, or other users can write to it. If
        the default folder cannot be used, a note is printed, and each run compiles its programs
        again.
    """
    _set_up_libraries()
    if cache_dir is not None:
        compilation_cache.use_folder(cache_dir)
    else:
        compilation_cache.use_configured_or_default_folder()


@functools.cache
def _set_up_libraries() -> None:
    _reuse_large_buffers()  # first, because it affects only threads that start later
    absl_logging.get_absl_logger().addFilter(_is_not_raised)
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _is_not_raised(record: logging.LogRecord) -> bool:
    """Return False for a message about an exception in Orbax's threads, which is also raised."""
    return not ("orbax" in record.pathname and record.exc_info)


def _reuse_large_buffers() -> None:
    """Keep freed memory in the process. This has no effect without glibc."""
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 256 << 20)
    mallopt(m_arena_max, 1)
