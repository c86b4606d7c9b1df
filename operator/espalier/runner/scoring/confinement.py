"""What keeps a scorer in: what this machine offers, and how a process is put under it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydantic

import espalier
from espalier.runner.scoring import landlock, seccomp

# Where the dynamic linker and time zones find what Python's modules load.
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_PYTHON = ("stdlib", "platstdlib", "purelib", "platlib")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Confinement:
    """What the kernel offers.

    Attributes:
        landlock: its version, 0 for none: files other than Python's cannot be read.
        seccomp: no sockets, processes, signals; without Landlock no file can be opened at all.
    """

    landlock: int
    seccomp: bool

    @classmethod
    def offered(cls) -> Confinement:
        """Of this machine."""
        return cls(landlock.version(), seccomp.supported())

    def hide_files(self) -> None:
        """For the worker, before it sees an answer: what is read from now on is Python's."""
        if self.landlock:
            landlock.confine(_readable())

    def enter(self, *, seconds: int, address_bytes: int) -> None:
        """For a child, before it reads an answer; nothing takes it back.

        Args:
            seconds: of CPU time, after which the kernel kills it.
            address_bytes: of address space.
        """
        _limit(resource.RLIMIT_CPU, seconds)
        _limit(resource.RLIMIT_FSIZE, 0)
        _limit(resource.RLIMIT_CORE, 0)
        # macOS knows the name and refuses every value.
        if sys.platform != "darwin":
            _limit(resource.RLIMIT_AS, address_bytes)
        if self.seccomp:
            seccomp.confine(files=bool(self.landlock))


def follow_parent() -> None:
    """Has this process end with the runner, and before it where memory runs out; no core file."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def address_bytes() -> int:
    """The address space of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _limit(which: int, value: int) -> None:
    _, highest = resource.getrlimit(which)
    if highest != resource.RLIM_INFINITY:
        value = min(value, highest)
    resource.setrlimit(which, (value, value))


def _readable() -> Iterator[Path]:
    # Of Espalier the package itself: the directory that it lies in may be somebody's project.
    ours, libraries = Path(espalier.__file__).parent, Path(pydantic.__file__).parents[1]
    python = (sysconfig.get_path(name) for name in _PYTHON)
    names: list[str | Path] = [*python, *_SYSTEM, ours, libraries]
    for path in dict.fromkeys(Path(name).resolve() for name in names):
        if path.exists():
            yield path
