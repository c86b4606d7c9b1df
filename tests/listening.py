"""What a process listens on, from the kernel's tables."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LISTENS, UNCONNECTED = "0A", "07"
TABLES = (
    ("tcp", socket.AF_INET, LISTENS),
    ("tcp6", socket.AF_INET6, LISTENS),
    ("udp", socket.AF_INET, UNCONNECTED),
    ("udp6", socket.AF_INET6, UNCONNECTED),
)
# Of a row of /proc/net/unix: __SO_ACCEPTCON.
ACCEPTS = 0x10000


@dataclass(frozen=True)
class Listener:
    """A socket of a process. ``protocol`` is tcp, tcp6, udp, udp6 or unix."""

    protocol: str
    address: str
    port: int = 0

    @property
    def is_abstract(self) -> bool:
        """Whether it is a name without a file, to which every process of the network connects."""
        return self.protocol == "unix" and self.address.startswith("@")

    @property
    def is_writable_by_others(self) -> bool:
        """Whether other users may connect to it, if it is a file."""
        return bool(Path(self.address).stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def family(process: int) -> list[int]:
    """A process and all that descend from it."""
    found = [process]
    for thread in Path(f"/proc/{process}/task").iterdir():
        # One that ends meanwhile has no children.
        with suppress(OSError):
            for child in (thread / "children").read_text().split():
                found += family(int(child))
    return found


def listeners(process: int) -> list[Listener]:
    """Every socket of this process that takes connections or datagrams."""
    kernel = Path(f"/proc/{process}")
    sockets = set()
    for descriptor in (kernel / "fd").iterdir():
        with suppress(FileNotFoundError):
            sockets.add(str(descriptor.readlink()))
    return [*_of_the_network(kernel, sockets), *_of_files(kernel, sockets)]


def _of_the_network(kernel: Path, sockets: set[str]) -> Iterator[Listener]:
    for table, kind, listens in TABLES:
        for row in (kernel / "net" / table).read_text().splitlines()[1:]:
            address, state, inode = (row.split()[column] for column in (1, 3, 9))
            if state == listens and f"socket:[{inode}]" in sockets:
                host, port = address.split(":")
                packed = bytes.fromhex(host)
                words = [packed[i : i + 4][::-1] for i in range(0, len(packed), 4)]
                yield Listener(table, socket.inet_ntop(kind, b"".join(words)), int(port, 16))


def _of_files(kernel: Path, sockets: set[str]) -> Iterator[Listener]:
    for row in (kernel / "net" / "unix").read_text().splitlines()[1:]:
        _, _, _, flags, _, _, inode, *path = row.split()
        if int(flags, 16) & ACCEPTS and f"socket:[{inode}]" in sockets:
            yield Listener("unix", path[0] if path else "")
