"""Ports of this machine for processes that must be told theirs before they start.

The kernel gives the ports of its ephemeral range to every connection that any process makes, so
that one found free there may be taken before its process listens, seconds later, on it. These are
from below that range, and none is given twice by a process.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST, UNKNOWN_RANGE = 10_000, 32_768
TRIES = 1000

# Seeded by the system: neither tests that seed the global generator nor two processes meet here.
_random = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """A TCP port that nothing listens on, at any address; OSError if none is found."""
    end = int(RANGE.read_text().split()[0]) if RANGE.exists() else UNKNOWN_RANGE
    if end <= LOWEST + TRIES:
        # A machine with another range has no such gap: what the kernel gives must do.
        return _of_the_kernel()
    for _ in range(TRIES):
        port = _random.randrange(LOWEST, end)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise OSError(f"{TRIES} ports from {LOWEST} to {end} are all in use")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def _of_the_kernel() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
