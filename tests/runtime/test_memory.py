from __future__ import annotations

import ctypes
import platform
import resource

import pytest

from discern.runtime.memory import keeping_large_arrays

MEGABYTES_64 = 64 * 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_large_array_takes_over_the_memory_of_the_last_one() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p

    def new_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        array = ctypes.c_void_p(library.malloc(ctypes.c_size_t(MEGABYTES_64)))
        library.memset(array, 1, ctypes.c_size_t(MEGABYTES_64))
        library.free(array)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    new_pages()
    outside = new_pages()
    with keeping_large_arrays():
        new_pages()
        within = new_pages()
    new_pages()
    assert outside > 10_000
    assert within < 1_000
    assert new_pages() > 10_000


def test_the_memory_is_given_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="stop"), keeping_large_arrays():
        raise ValueError("stop")
    test_a_large_array_takes_over_the_memory_of_the_last_one()
