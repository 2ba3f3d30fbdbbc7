"""What `backend` does to the process."""

import ctypes
import platform

import pytest

from nanodet_jax.runtime import backend

HOLE = 40_000  # bytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_small_holes_are_used_no_more_and_what_lies_between_stays():
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    backend.defragment_heap()  # those that earlier tests left, which would be used first
    addresses = [libc.malloc(HOLE + 16 * i) for i in range(200)]
    kept, holes = addresses[1::2], addresses[::2]
    for i, address in enumerate(kept):
        ctypes.memset(address, i, HOLE)
    for address in holes:
        libc.free(address)
    assert libc.malloc(HOLE) in holes  # the heap reuses them, until
    backend.defragment_heap()
    later = [libc.malloc(HOLE) for _ in range(100)]
    assert not set(later) & set(holes)
    for i, address in enumerate(kept):
        assert ctypes.string_at(address, HOLE) == bytes([i]) * HOLE
    for address in (*kept, *later):
        libc.free(address)
    backend.defragment_heap()  # again, with nothing to do or little
