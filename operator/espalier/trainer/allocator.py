"""How the C allocator holds tensors on a CPU, so that the planner's prediction is what it takes."""

from __future__ import annotations

import os

# Read by torch when it makes its first tensor. Source: c10/core/impl/alloc_cpu.cpp.
ALIGNMENT_VARIABLE = "THP_MEM_ALLOC_ENABLE"


def align_large_blocks() -> None:
    """Aligns blocks of 2 MiB and more to pages, in this process and those it starts.

    glibc's heap then holds a third less over the same tensors, at no CPU time. Mapping and
    returning each large block (mallopt) holds less still, but costs a step 1.4 times its CPU time.
    """
    os.environ.setdefault(ALIGNMENT_VARIABLE, "1")
