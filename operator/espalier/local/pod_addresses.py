"""Addresses of the loopback for the pods of one ``espalier dev``."""

from __future__ import annotations

import errno
import socket

from espalier.core.manifests.pod import PORT
from espalier.local.layout import StartError


def claimed_network() -> tuple[int, socket.socket]:
    """The second byte of the pods' addresses, and the socket that reserves it on this machine.

    Raises:
        StartError: there is none.
    """
    for network in range(64, 192):
        claim = socket.socket()
        try:
            claim.bind((f"127.{network}.255.254", PORT))
        except OSError as error:
            claim.close()
            if error.errno != errno.EADDRINUSE:
                raise StartError(
                    f"pods need the addresses 127.{network}.0.0/16, which Linux has without being "
                    f"asked: {error.strerror}; use Linux, or a container of it"
                ) from error
        else:
            return network, claim
    raise StartError(
        f"a program listens on port {PORT} at all addresses (see `ss -ltnp sport = :{PORT}`), or "
        f"128 times espalier dev runs: pods listen there, stop it"
    )
