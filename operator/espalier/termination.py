"""SIGTERM while a process starts: as process 1 of a container, Python ignores it without a handler.

Imported before anything slow, so it imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

EXIT_TERMINATED = 128 + signal.SIGTERM


def end_on_sigterm() -> None:
    """Lets SIGTERM end this process at once, until it has a handler of its own.

    For a process that has nothing to finish yet, or whose work stays whole whenever it dies.
    """
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> NoReturn:
    os._exit(EXIT_TERMINATED)
