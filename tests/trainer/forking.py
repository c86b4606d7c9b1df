"""Forks in a process that other tests have used before."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


def fork() -> int:
    """``os.fork``, of which the child never collects what is garbage here.

    That may be a process group whose threads did not come along: its end would wait for them.
    """
    gc.freeze()
    child = os.fork()
    if child:
        gc.unfreeze()
    return child


@contextmanager
def nothing_collected() -> Iterator[None]:
    """The same for what multiprocessing forks meanwhile."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
