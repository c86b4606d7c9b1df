"""Landlock: which files a process may read; it may then write none, and connect nowhere.

Needs no privilege, Linux 5.13 or later, and holds for the process and all that it starts.
https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable
from pathlib import Path

# The same on all machines.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38

_READ_FILE, _READ_DIRECTORY = 1 << 2, 1 << 3
# By the version that brought them: number of rights over files; of networks; of scopes
# (abstract sockets and signals of processes outside).
_FILES = {1: 13, 2: 14, 3: 15, 5: 16}
_NETWORK = {4: 2}
_SCOPES = {6: 2}


def version() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    if platform.system() != "Linux":
        return 0
    answer = _library().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return max(int(answer), 0)


def confine(readable: Iterable[Path]) -> None:
    """Lets this process read what lies beneath ``readable`` and do nothing else with files.

    Files that are open already stay so.

    Raises:
        OSError: the kernel refused it.
    """
    known = version()
    handled = struct.pack("<QQQ", *(_bits(rights, known) for rights in (_FILES, _NETWORK, _SCOPES)))
    ruleset = _call("create", _CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    try:
        for path in readable:
            _allow(ruleset, path)
        if _library().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl refused no_new_privs")
        _call("restrict", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path) -> None:
    rights = _READ_FILE | (_READ_DIRECTORY if path.is_dir() else 0)
    target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("<Qi", rights, target)
        _call("allow", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(target)


def _bits(brought: dict[int, int], known: int) -> int:
    return (1 << max((n for since, n in brought.items() if since <= known), default=0)) - 1


def _call(what: str, *arguments: object) -> int:
    answer = int(_library().syscall(*arguments))
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {what} was refused")
    return answer


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
