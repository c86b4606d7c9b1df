"""A seccomp filter: the system calls that a scorer needs, and no other.

What is not listed fails with EPERM: sockets, fork and threads, exec, signals, ptrace, memory of
other processes, io_uring, limits, and every way to change a file. It needs no privilege, only
``no_new_privs``, and stays for the rest of the process.
https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

# Numbers on x86_64 and on aarch64, which lacks some.
_ALWAYS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67),
    "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291), "stat": (4, None),
    "lstat": (6, None), "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "getdents64": (217, 61),
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216),
    "madvise": (28, 233), "brk": (12, 214), "futex": (202, 98), "membarrier": (324, 283),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "exit": (60, 93), "exit_group": (231, 94), "getpid": (39, 172),
    "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "getrandom": (318, 278),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "set_robust_list": (273, 99),
    "rseq": (334, 293), "restart_syscall": (219, 128), "getrusage": (98, 165), "uname": (63, 160),
    "sysinfo": (99, 179), "times": (100, 153),
}  # fmt: skip
# Each with the argument that holds its flags.
_OPENING = {"open": ((2, None), 1), "openat": ((257, 56), 2)}
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
# The other ABI of x86_64 has numbers of its own, from this bit on.
_X32 = 0x40000000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2


@dataclass(frozen=True)
class _Machine:
    audit: int
    column: int


_MACHINES = {"x86_64": _Machine(0xC000003E, 0), "aarch64": _Machine(0xC00000B7, 1)}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def program(machine: str, *, files: bool) -> bytes:
    """The filter's instructions.

    Args:
        machine: as ``platform.machine()`` says it; KeyError for one that has no table here.
        files: whether files may be opened for reading.
    """
    known = _MACHINES[machine]
    deny = _return(_ERRNO | errno.EPERM)
    body = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, known.audit, yes=1),
        _return(_KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
        _instruction(_AT_LEAST, _X32, no=1),
        deny,
    ]
    for numbers in _ALWAYS.values():
        number = numbers[known.column]
        if number is not None:
            body += [_instruction(_EQUAL, number, no=1), _return(_ALLOW)]
    for numbers, flags in _OPENING.values() if files else ():
        number = numbers[known.column]
        if number is not None:
            # The low half of the argument: both machines are little-endian.
            body += [
                _instruction(_EQUAL, number, no=4),
                _instruction(_LOAD, _ARGUMENTS + 8 * flags),
                _instruction(_ANY_BIT, _CHANGES, yes=1),
                _return(_ALLOW),
                deny,
            ]
    return b"".join([*body, deny])


def supported() -> bool:
    """Whether this kernel takes filters and there is a table for this machine."""
    if platform.system() != "Linux" or platform.machine() not in _MACHINES:
        return False
    # A filter at address 0 cannot be read: EFAULT where filters are known, EINVAL where not.
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


def confine(*, files: bool) -> None:
    """Puts this process under the filter for good.

    Raises:
        OSError: the kernel refused it.
    """
    code = program(platform.machine(), files=files)
    memory = ctypes.create_string_buffer(code, len(code))
    given = _Program(len(code) // 8, ctypes.addressof(memory))
    library = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(given), 0, 0),
    ):
        if library.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl refused the seccomp filter")


def _instruction(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


def _return(action: int) -> bytes:
    return _instruction(_RETURN, action)
