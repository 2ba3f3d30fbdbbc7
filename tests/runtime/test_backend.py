"""Memory of the heap after `backend.defragment_heap`."""

import ctypes
import platform

import pytest

from nanodet_jax.runtime import backend

CHUNK = 40_000  # bytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_defragment_heap_claims_small_free_chunks_and_keeps_used_ones():
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    backend.defragment_heap()  # claims free chunks of earlier tests, which malloc would use first
    addresses = [libc.malloc(CHUNK + 16 * i) for i in range(200)]
    used, freed = addresses[1::2], addresses[::2]
    for i, address in enumerate(used):
        ctypes.memset(address, i, CHUNK)
    for address in freed:
        libc.free(address)
    assert libc.malloc(CHUNK) in freed  # before, malloc reuses a free chunk
    backend.defragment_heap()
    later = [libc.malloc(CHUNK) for _ in range(100)]
    assert not set(later) & set(freed)
    for i, address in enumerate(used):
        assert ctypes.string_at(address, CHUNK) == bytes([i]) * CHUNK
    for address in (*used, *later):
        libc.free(address)
    backend.defragment_heap()  # again, with little or nothing to do
