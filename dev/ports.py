"""Ports of this machine for processes that must be told theirs before they start.

The kernel gives the ports of its ephemeral range to every connection that any process makes, so
that one found free there may be taken before its process listens, seconds later, on it. These are
from below that range, and none is given twice by a process.

Pods listen on one port that is theirs to choose, so those that are played here have addresses: a
loopback network of their own, which no other process has meanwhile.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST, UNKNOWN_RANGE = 10_000, 32_768
TRIES = 1000
# Second bytes of own_network's: above those that espalier.local.kubelet takes for its pods.
NETWORKS = range(192, 255)

# Seeded by the system: neither tests that seed the global generator nor two processes meet here.
_random = random.SystemRandom()
_given: set[int] = set()
# One socket for each network that is this process's, until it ends.
_claims: list[socket.socket] = []


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


def own_network(port: int) -> str:
    """Three bytes of loopback addresses (``127.x.y``) for servers that listen on ``port``.

    No other process here gets them before this one ends; OSError if none is found.
    """
    for _ in range(TRIES):
        network = f"127.{_random.choice(NETWORKS)}.{_random.randrange(255)}"
        claim = socket.socket()
        try:
            claim.bind((f"{network}.254", port))
        except OSError:
            claim.close()
        else:
            _claims.append(claim)
            return network
    raise OSError(f"port {port} is in use in {TRIES} networks from 127.{NETWORKS.start}.0.0")


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
