"""SIGTERM while a process starts: as process 1 of a container, Python ignores it without a handler.

Imported before anything slow, so it imports next to nothing.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from espalier.api.exit_codes import TERMINATED


def end_on_sigterm() -> None:
    """Lets SIGTERM end this process at once, until it has a handler of its own."""
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> NoReturn:
    os._exit(TERMINATED)
