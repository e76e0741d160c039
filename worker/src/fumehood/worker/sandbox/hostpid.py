"""The process behind a pidfd, by the number that it has for this process.

What a zygote calls its sandboxes are numbers of its own PID namespace, of no use outside.
"""

from __future__ import annotations

import fcntl
import struct

_INFO = struct.Struct("=QQ12I")  # struct pidfd_info of Linux 6.13: mask, cgroup, pid, ...
_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11  # PIDFD_GET_INFO: _IOWR(0xFF, 11, 64 bytes)
_MASK_PID = 1


def host_pid(pidfd: int) -> int:
    """Its id in this process's PID namespace.

    Raises ``ProcessLookupError`` when it has ended and been reaped, or is not to be seen here.
    """
    asked = bytearray(_INFO.pack(_MASK_PID, *(0,) * 13))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, asked)
    except ProcessLookupError:
        raise
    except OSError:  # Linux before 6.13
        return _by_fdinfo(pidfd)
    pid = int(_INFO.unpack(asked)[2])
    if pid <= 0:
        raise ProcessLookupError("the process is of another PID namespace")
    return pid


def _by_fdinfo(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        pid = int(file.read().partition("\nPid:")[2].split()[0])
    if pid <= 0:
        raise ProcessLookupError("the process has ended, or is of another PID namespace")
    return pid
