"""The few system calls that Python has no name for.

Whoever needs one after a fork imports this before it: a first ctypes call made in a fresh child
costs 100 us of symbol look-up and copied pages, a resolved one 1 us.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import struct
import sys
import time

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
_IONBF = 2

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36


def prctl(option: int, value: int) -> None:
    """Set one process attribute. Raises ``OSError``."""
    if _prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def become_subreaper() -> None:
    """Adopt orphaned descendants instead of leaving them to init."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def unbuffer_c_streams() -> None:
    """Have C code's stdio write at once: what a killed process held in a buffer would be lost."""
    for name in ("stdout", "stderr"):
        _libc.setvbuf(ctypes.c_void_p.in_dll(_libc, name), None, _IONBF, 0)


_PIDFD_INFO = struct.Struct("=QQ11Ii")  # mask, cgroup, eleven ids, exit code; Linux 6.13
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3
_STAT_EXIT_CODE = 49  # counted from the state: the last of 52 fields in /proc/PID/stat


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def exit_status(pidfd: int) -> int | None:
    """The wait status of a process that has ended; None while, or where, the kernel does not tell.

    A child of this process is reaped. Of any other, Linux 6.15 and later remembers the status once
    its parent has reaped it; until then it is a zombie, whose status /proc shows to its owner.
    """
    with contextlib.suppress(ChildProcessError):
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        if info is not None:
            return info.si_status << 8 if info.si_code == os.CLD_EXITED else info.si_status
    status = _status_of_zombie(pidfd)
    return remembered_status(pidfd) if status is None else status


_ASK_EXIT = _PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *(0,) * 13)


def remembered_status(pidfd: int) -> int | None:
    """The wait status of a process that has been reaped; Linux 6.15 and later tell it anybody."""
    try:
        answer = fcntl.ioctl(pidfd, _PIDFD_GET_INFO, _ASK_EXIT)
    except OSError:
        return None
    if not answer[0] & _PIDFD_INFO_EXIT:
        return None
    return int.from_bytes(answer[-4:], sys.byteorder, signed=True)


def end_of(pidfd: int, seconds: float) -> int | None:
    """Wait for the end of a process that somebody reaps; its status if the kernel tells it."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        poll.poll(max(0.0, end - time.monotonic()) * 1000)
        status = remembered_status(pidfd)
        if status is not None:
            return status
        time.sleep(0.001)  # it has ended, and is not reaped yet
    return None


def _status_of_zombie(pidfd: int) -> int | None:
    try:
        info = _read(f"/proc/self/fdinfo/{pidfd}")
        pid = int(info.partition("\nPid:")[2].split()[0])
        stat = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        signal.pidfd_send_signal(pidfd, 0)  # not reaped by now, and so the number is still its own
    except (OSError, ValueError, IndexError):
        return None
    return int(stat[_STAT_EXIT_CODE]) if stat[0] == "Z" else None


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
