"""XLA compiler options, platform-specific computations, and defragmentation of the heap."""

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import Any

import jax

# By default XLA's CPU backend runs convolutions with YNNPACK. For these networks it is slower, and
# so imprecise that gradient norms are off by 3e-3 instead of 6e-6. With these options, YNNPACK runs
# only dot products and reductions.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """Return options for `jax.jit` on the default backend, or None if there are none."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=CPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # a jaxlib without this option
        return None
    return CPU_OPTIONS


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Call `jax.jit` with `compiler_options()`. Use it for every program whose results matter."""
    return jax.jit(function, compiler_options=compiler_options(), **options)


def jit_once(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Call `jax.jit` for a program that runs once. It compiles twice as fast, but runs slowly."""
    quickly = compiler_options()
    if quickly is not None:
        quickly = quickly | {"xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=quickly, **options)


def choose(*, cpu: Any, default: Any) -> Any:
    """Return the implementation to trace: `cpu` on a CPU, `default` elsewhere.

    The platform is taken from `jax.default_device` at the time of tracing.
    `lax.platform_dependent` would leave the choice to the compiler, but would trace, differentiate
    and lower both implementations. With cached programs, that would take a third of the
    startup time.
    """
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    return cpu if platform == "cpu" else default


def defragment_heap() -> None:
    """Claim the small free chunks that a compilation leaves in the heap. Call it after compiling.

    A compilation leaves tens of thousands of free chunks of different sizes. With one arena, malloc
    searches them for every buffer of a convolution, under one lock: a training step then takes 1.5
    times as long. This function allocates all free chunks of 16 to 256 KB and never frees them.
    Their pages, 100 to 400 MB, are returned to the system. With a C library other than glibc, this
    function does nothing.
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
            # malloc always merges adjacent free chunks. Two adjacent results were therefore cut
            # from a larger chunk, and no free chunk of this size is left.
            if address is None or (before is not None and address == before + size):
                free(address)
                free(before)
                break
            if before is not None:
                start, end = -(-before // page) * page, (before + request) // page * page
                madvise(start, end - start, mmap.MADV_DONTNEED)
            before = address
        size = size * 7 // 8 // 16 * 16  # chunks are multiples of 16 bytes
