"""Which tests stay together on one worker, and in which order they are begun.

A worker that is free takes the group that is next. Long groups are begun first, so that both
workers end at about the same time.
"""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
# Folders whose files share what is started once for all of them; elsewhere a file is a group.
TOGETHER = ("compat", "e2e", "gitops")
ORDER = ()


def group(path: Path) -> str:
    """The name of the group of a test file's tests."""
    file = path.relative_to(TESTS)
    return file.parts[0] if file.parts[0] in TOGETHER else file.with_suffix("").as_posix()


def turn(path: Path) -> int:
    """Where a test file stands in the order of beginning: the lowest first."""
    name = path.relative_to(TESTS).as_posix()
    return next((n for n, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))
