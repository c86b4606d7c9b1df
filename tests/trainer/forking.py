"""Forks in a process that other tests have used before."""

from __future__ import annotations

import gc
import os


def fork() -> int:
    """``os.fork``, of which the child never collects what is garbage here.

    That may be a process group whose threads did not come along: its end would wait for them.
    """
    gc.freeze()
    child = os.fork()
    if child:
        gc.unfreeze()
    return child
