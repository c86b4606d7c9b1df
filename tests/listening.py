"""Where a process listens, from the kernel's tables."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path


def listening(process: int | None) -> set[tuple[str, int]]:
    """Address and port of each of its TCP sockets that listen."""
    kernel = Path(f"/proc/{process}")
    sockets = set()
    for descriptor in (kernel / "fd").iterdir():
        with suppress(FileNotFoundError):
            sockets.add(str(descriptor.readlink()))
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for row in (kernel / "net" / table).read_text().splitlines()[1:]:
            place, state, inode = (row.split()[column] for column in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in sockets:
                address, port = place.split(":")
                packed = bytes.fromhex(address)
                words = [packed[i : i + 4][::-1] for i in range(0, len(packed), 4)]
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found
