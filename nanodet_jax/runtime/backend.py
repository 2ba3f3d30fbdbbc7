"""What this machine needs before and while XLA compiles: options, cache, allocator."""

import ctypes
import functools
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from nanodet_jax.errors import UserError
from nanodet_jax.terminal import say

# XLA's CPU backend hands convolutions to YNNPACK by default: slower here, and so coarse that
# gradients differ from float32's by 3e-3 where 6e-6 is possible. Dots and reductions may stay.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """Options for `jax.jit` on the default backend, or None where there are none to give."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=CPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # a jaxlib without this option
        return None
    return CPU_OPTIONS


def jit(function: Callable, **options: Any) -> Callable:
    """`jax.jit` with `compiler_options()`: every program whose numbers matter goes through it."""
    return jax.jit(function, compiler_options=compiler_options(), **options)


def jit_once(function: Callable, **options: Any) -> Callable:
    """`jit` for a program that runs once: compiled in less than half the time, slow to run."""
    quickly = compiler_options()
    if quickly is not None:
        quickly = quickly | {"xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=quickly, **options)


def choose(*, cpu: Any, default: Any) -> Any:
    """Of two forms of a computation, the one to trace: `cpu` or, elsewhere, `default`.

    The platform is that of `jax.default_device`, as it is while tracing. `lax.platform_dependent`
    would leave the choice to the compiler, but traces, differentiates and lowers both forms each
    time: a third of a start from the cache.
    """
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    return cpu if platform == "cpu" else default


def prepare(cache_dir: str | Path | None = None) -> None:
    """Set the process up: call before the first compilation. Calling it again is harmless.

    JAX loads what it finds in its cache as machine code, without any check. So a folder that others
    may write to is not used.

    Args:
      cache_dir: where compiled programs are kept between runs; by default
        `$JAX_COMPILATION_CACHE_DIR`, or `nanodet_jax` in the user's cache folder. It is made if it
        is missing, for this user alone.

    Raises:
      UserError: if a folder was named, by argument or environment, that cannot be made or that
        others may write to. With the default folder a note says so, and nothing is kept.
    """
    _keep_freed_memory()  # first: it reaches only threads that come after it
    named = cache_dir or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder: str | None = None
    try:
        folder = str(named or _default_cache())
        if "://" not in folder:  # else a bucket, whose owner decides who may write to it
            check_cache(Path(folder))
    except UserError as error:
        if named:
            raise
        folder = None
        _note(f"note: {error}; until then each run compiles anew")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _default_cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanodet_jax"
    except RuntimeError as error:
        raise UserError(
            "this user has no home folder for compiled programs: set JAX_COMPILATION_CACHE_DIR"
        ) from error


def check_cache(folder: Path) -> None:
    """Make a folder of compiled programs if it is missing, and refuse one that others may change.

    All in it must belong to this user or to root, and be closed to the writes of others. Windows,
    where permissions are of another kind, is not checked.

    Raises:
      UserError: naming the folder and the command that helps.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        reachable = bool(found.st_mode & 0o011)  # by others
        with os.scandir(folder) as entries:
            inside = [entry.stat(follow_symlinks=False) for entry in entries]
        suspect = _is_foreign(found) or any(_is_foreign(one, reachable) for one in inside)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot hold compiled programs: {error.strerror}; set "
            "JAX_COMPILATION_CACHE_DIR to a folder of yours"
        ) from error
    if suspect:
        raise UserError(
            f"{folder}: other users may write to this folder of compiled programs, and so run "
            f"code as you; delete it if others did, else `chmod -R go-w {folder}`, or set "
            "JAX_COMPILATION_CACHE_DIR to a folder of yours"
        )


def _is_foreign(found: os.stat_result, reachable: bool = True) -> bool:
    """Whether another user than root owns a file, or may write to it."""
    if not hasattr(os, "geteuid"):
        return False
    others = 0o002 if _is_private_group(found.st_gid) else 0o022
    writable = stat.S_IMODE(found.st_mode) & others and not stat.S_ISLNK(found.st_mode)
    return found.st_uid not in (0, os.geteuid()) or bool(reachable and writable)


@functools.cache
def _is_private_group(group: int) -> bool:
    """Whether a group has this user alone, as many systems set up one for each user."""
    import grp  # absent on Windows
    import pwd

    try:
        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    same = user.pw_gid == group and entry.gr_name == user.pw_name
    return same and set(entry.gr_mem) <= {user.pw_name}


@functools.cache
def _note(line: str) -> None:
    say(line)  # once, though `prepare` is called again and again


def _keep_freed_memory() -> None:
    """Have glibc reuse large buffers: else a step on a CPU faults in 500 MB anew each time.

    The price is that memory stays at its peak. Other C libraries are left alone.
    """
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 256 << 20)
    mallopt(m_arena_max, 1)


def defragment_heap() -> None:
    """Take the small holes that a compilation leaves in the heap out of use; call it after one.

    A compilation leaves tens of thousands of free chunks, all of different sizes, and with one
    arena every buffer of a convolution is found among them, under one lock: a training step then
    takes 1.5 times as long. Chunks of 16 to 256 KB are claimed for good; their pages, some 100 to
    400 MB, go back to the system. Where the C library is not glibc this does nothing.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        malloc, free, madvise = libc.malloc, libc.free, libc.madvise
    except (OSError, AttributeError):
        return
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.argtypes = [ctypes.c_void_p]
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    header, page, size = 8, mmap.PAGESIZE, 256 << 10
    while size >= 16 << 10:
        request, before = size - header, None
        while True:
            address = malloc(request)
            # Free neighbours are always merged. Two chunks side by side are therefore cut from
            # one that is larger than all holes: of this size there are none left.
            if address is None or (before is not None and address == before + size):
                free(address)
                free(before)
                break
            if before is not None:
                start, end = -(-before // page) * page, (before + request) // page * page
                madvise(start, end - start, mmap.MADV_DONTNEED)
            before = address
        size = size * 7 // 8 // 16 * 16  # chunks are multiples of 16 bytes
