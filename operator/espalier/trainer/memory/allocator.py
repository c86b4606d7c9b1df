"""How glibc's heap holds tensors on a CPU. To drop it, remove its import and use in three files.

Without it the planner counts the bytes of tensors alone, as it does on a GPU, where torch's
allocator splits blocks exactly. Measurements: ``tests/trainer/peak.py``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# The heap's size over that of the predicted tensors. Short rows need the larger factor: none of
# their blocks reaches 2 MiB. With checkpointing, large blocks are mapped (``mapping_blocks``).
PLAIN_FACTOR = 2.0
CHECKPOINTING_FACTOR = 1.15
# Many short rows took up to 8 MiB more than their largest.
MARGIN_BYTES = 1 << 24
# Torch reads it when it makes its first tensor. Source: c10/core/impl/alloc_cpu.cpp.
ALIGNMENT_VARIABLE = "THP_MEM_ALLOC_ENABLE"
# The option of mallopt, its value inside ``mapping_blocks``, and glibc's own largest value, which
# a process reaches by itself.
_MMAP_THRESHOLD = -3
_MAPPED_BYTES = 1 << 16
_LARGEST_THRESHOLD = 1 << 25


def align_large_blocks() -> None:
    """Aligns blocks of 2 MiB and more to pages, in this process and its children.

    glibc's heap then holds a third less over the same tensors, at no CPU time. Mapping each large
    block holds less still, but makes a step take 1.4 times its CPU time.
    """
    os.environ.setdefault(ALIGNMENT_VARIABLE, "1")


@contextmanager
def mapping_blocks() -> Iterator[None]:
    """Maps each block of 64 KiB and more inside, and returns it to the kernel when it is freed.

    Used while layers are computed again: what they free would otherwise stay in the heap, in
    pieces between the kept inputs. The heap is trimmed first. Does nothing where the C library is
    not glibc. Source: mallopt(3), malloc_trim(3).
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
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
