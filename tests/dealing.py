"""Which tests stay together on one worker, and in which order they are begun.

A worker that is free takes the group that is next, so long groups are begun first, and the two
workers end at about the same time. The cluster's tests are begun when those that compute much are
over: what is left beside them is short, or waits most of its time.
"""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
# Two vLLM servers on two cores hinder each other more than they overlap: one worker starts them.
VLLM = "vllm"
# Folders whose files share what is started once for all of them; elsewhere a file is a group.
TOGETHER = ("compat", "e2e", "gitops")
# Starts of groups' names. What none of them begins comes last.
ORDER = (
    VLLM,
    "trainer/test_ranks",
    "compat",
    "trainer/",
    "rollout/",
    "e2e",
    "gitops",
    "simulation/test_deletion_real",
    "simulation/test_takeover",
)


def group(path: Path, *, vllm: bool) -> str:
    """The name of the group of a test in this file. ``vllm``: whether it has that marker."""
    if vllm:
        return VLLM
    file = path.relative_to(TESTS)
    return file.parts[0] if file.parts[0] in TOGETHER else file.with_suffix("").as_posix()


def turn(name: str) -> int:
    """Where a group stands in the order of beginning: the lowest first."""
    return next((n for n, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))
