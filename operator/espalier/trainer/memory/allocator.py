"""How the C allocator holds tensors on a CPU, so that the planner's prediction is what it takes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Read by torch when it makes its first tensor. Source: c10/core/impl/alloc_cpu.cpp.
ALIGNMENT_VARIABLE = "THP_MEM_ALLOC_ENABLE"
# The option of mallopt, its value inside, and what glibc itself ends up with: its largest.
_MMAP_THRESHOLD = -3
_MAPPED_BYTES = 1 << 16
_MAPPED_BYTES_ELSE = 1 << 25


def align_large_blocks() -> None:
    """Aligns blocks of 2 MiB and more to pages, in this process and those it starts.

    glibc's heap then holds a third less over the same tensors, at no CPU time. Mapping and
    returning each large block holds less still, but costs a step 1.4 times its CPU time.
    """
    os.environ.setdefault(ALIGNMENT_VARIABLE, "1")


@contextmanager
def mapping_blocks() -> Iterator[None]:
    """Maps each block of 64 KiB and more inside, and returns it to the kernel when it is freed.

    For layers that are computed again: what they free leaves the heap in pieces between the inputs
    that are kept, up to all that the layers would have kept. What the heap holds from before goes
    back first. Does nothing where the C library is not glibc. Source: mallopt(3), malloc_trim(3).
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.malloc_trim(0)
    libc.mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES_ELSE)
