"""Forks in a process that other tests have used before."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FAILED = 99


def in_a_fork(work: Callable[[], None]) -> int:
    """Does the work in a forked child; 0, FAILED if it raised, or minus the signal that ended it.

    The child never collects what is garbage here: that may be a process group whose threads did
    not come along, and its end would wait for them.
    """
    with nothing_collected():
        child = os.fork()
        if child == 0:
            code = FAILED
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Keeps what is garbage from being collected, here and in what is forked meanwhile."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
