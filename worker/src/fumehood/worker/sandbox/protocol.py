"""The frames between manager, zygote and sandbox: one SEQPACKET message each.

Two channels. The control socket joins manager and zygote, which trust each other. A job socket
joins the manager and one sandbox, and whatever comes out of it may be forged: the manager takes
content from it, never a verdict.
"""

from __future__ import annotations

import marshal
import os
from _socket import (  # ``socket`` itself brings three more libraries into every fork
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_TRUNC,
    SCM_RIGHTS,
    SOL_SOCKET,
    socket,
)
from _struct import calcsize
from _struct import pack as _pack_struct
from _struct import unpack_from as _unpack

import msgpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Has the loader resolve every C function at once: resolved lazily, a function would be looked up
#: anew in each sandbox that is the first to call it. The zygote takes it out of its environment.
BIND_NOW = "LD_BIND_NOW"

# Larger payloads travel in a sealed memfd: a SEQPACKET message has to fit the socket's buffer.
INLINE_MAX = 64 << 10
FRAME_MAX = INLINE_MAX + 4096
# Arguments inline in a job frame: a sandbox reads it into fresh memory, and each fresh page costs.
ARGUMENTS_MAX = 6 << 10
JOB_MAX = 8 << 10

# Control socket, manager to zygote: [code, ...]
START, SEAT, FORK, RELAY = 0, 1, 2, 3
# Control socket, zygote to manager: [code, ...]
HELLO, HELLO_FAILED, FORKED, FORK_FAILED, EXITED = 10, 11, 12, 13, 14

#: How the process ends by which the manager sees whether the kernel tells it of ends.
PROBE_EXIT = 7

# Job socket: the first byte of a frame.
# A job comes first, marshalled: id, task, attempt, token, timeout, result limit, arguments or None.
ARGUMENTS = b"A"  # manager: the arguments are in the memfd that comes along
READY = b"R"  # sandbox: the task's code starts; eight bytes, the monotonic clock in seconds
VALUE = b"V"  # sandbox: the encoded value
VALUE_FD = b"M"  # sandbox: the encoded value is in the memfd that comes along
ERROR = b"E"  # sandbox: [type, message, traceback]
TOO_LARGE = b"L"  # sandbox: [bytes of the encoded value]
REFUSED = b"X"  # sandbox: [why the arguments cannot be read]
PROGRESS = b"P"  # sandbox: [fraction, message, data]
SETUP_FAILED = b"S"  # sandbox: [stage, errno, text], before READY only

RESULTS = frozenset((VALUE, VALUE_FD, ERROR, TOO_LARGE, REFUSED))

# Control frames are marshalled tuples, (code, ...); but for START, which is the first.
CONTROL_MAX = 256

CLOEXEC = MSG_CMSG_CLOEXEC
_CUT_OFF = MSG_TRUNC | MSG_CTRUNC
_FD_SIZE = calcsize("i")
_FD_SPACE = tuple(CMSG_SPACE(count * _FD_SIZE) for count in range(9))
MANY_FDS = _FD_SPACE[8]
_NO_FDS: list[int] = []


def pack(code: int | bytes, *parts: Any) -> bytes:
    """A frame of a job socket for a letter, of the control socket for a number."""
    if isinstance(code, bytes):
        return code + (msgpack.packb(list(parts)) if parts else b"")
    return marshal.dumps((code, *parts))


def unpack_control(frame: bytes | memoryview) -> tuple[Any, ...]:
    """The parts of a control frame. Both ends run one interpreter, which ``marshal`` requires."""
    parts: tuple[Any, ...] = marshal.loads(frame)  # noqa: S302 - from a process of our own
    return parts


def pack_job(*fields: Any) -> bytes:
    """A job frame. ``marshal`` serves one interpreter's processes, and is cheap in a fresh one."""
    return marshal.dumps(fields)


def send(sock: socket, frame: bytes, fds: list[int] = _NO_FDS) -> None:
    """Send one frame with file descriptors beside it."""
    if not fds:
        sock.send(frame)
        return
    sock.sendmsg([frame], [(SOL_SOCKET, SCM_RIGHTS, _pack_struct(f"{len(fds)}i", *fds))])


def receive(sock: socket, buffer: bytearray, max_fds: int) -> tuple[memoryview, list[int]]:
    """Receive one frame into ``buffer``; an empty frame is the end.

    More descriptors than ``max_fds``, or a frame larger than the buffer, is a ``ValueError``; the
    kernel has then closed what did not fit.
    """
    space = _FD_SPACE[max_fds]
    size, ancillary, flags, _ = sock.recvmsg_into((buffer,), space, CLOEXEC)
    fds = _descriptors(ancillary) if ancillary else []
    if flags & _CUT_OFF:
        for fd in fds:
            os.close(fd)
        raise ValueError("a frame is larger than its bound, or carries descriptors that it may not")
    return memoryview(buffer)[:size], fds


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds += _unpack(f"{len(data) // _FD_SIZE}i", data)
    return fds
