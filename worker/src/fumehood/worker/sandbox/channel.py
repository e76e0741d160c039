"""What manager and sandbox say to each other over a job socket, as the manager sees it.

Whatever comes out of that socket may be forged: each reader here raises ``ValueError`` or
``DecodeError`` for what no honest sandbox sends, and none trusts a size, a type or a descriptor.
"""

from __future__ import annotations

import fcntl
import os
import socket
from typing import Any

from fumehood.common.codec import decode
from fumehood.common.outcome import ErrorInfo
from fumehood.worker.sandbox import memfd, protocol
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.verdict import Result, SetupFault

_REPORTS_BURST = 20  # progress reports at once
_REPORTS_RATE = 40.0  # progress reports per second; an honest sandbox sends half as many
_MESSAGE_MAX = 1000  # characters of a report's text


def send_job(channel: socket.socket, job: Job) -> None:
    """Hand over a job. Raises ``OSError`` when nobody is there any more."""
    inline = len(job.arguments) <= protocol.ARGUMENTS_MAX
    frame = protocol.pack_job(
        job.job_id,
        job.task,
        job.attempt,
        job.token,
        job.timeout,
        job.result_max,
        job.arguments if inline else None,
    )
    channel.send(frame)
    if not inline:
        _send_memfd(channel, job.arguments)


def _send_memfd(channel: socket.socket, arguments: bytes) -> None:
    memfd = os.memfd_create("arguments", os.MFD_CLOEXEC)
    try:
        view = memoryview(arguments)
        while view:
            view = view[os.write(memfd, view) :]
        os.lseek(memfd, 0, os.SEEK_SET)
        protocol.send(channel, protocol.ARGUMENTS, [memfd])
    finally:
        os.close(memfd)


def read_setup_fault(body: memoryview) -> SetupFault:
    """Which stage failed, with which errno, and a text."""
    stage, number, text = _array(body, 3)
    if not isinstance(stage, str) or not isinstance(text, str):
        raise ValueError("a setup failure that is none")
    return stage, number if isinstance(number, int) else None, text


def read_result(kind: bytes, body: memoryview, fds: list[int], maximum: int) -> Result:
    """The result in a frame of a kind in ``protocol.RESULTS``; values stay encoded."""
    if kind == protocol.VALUE:
        fits = len(body) <= maximum
        return Result(value=bytes(body)) if fits else Result(too_large=len(body))
    if kind == protocol.VALUE_FD:
        return _read_memfd(fds, maximum)
    if kind == protocol.ERROR:
        return Result(error=ErrorInfo(*_texts(body, 3)))
    if kind == protocol.REFUSED:
        return Result(refused=_texts(body, 1)[0])
    (size,) = _array(body, 1)
    if type(size) is not int:
        raise ValueError("a result's size that is none")
    return Result(too_large=size)


def _read_memfd(fds: list[int], maximum: int) -> Result:
    """The value in a sealed memfd. Anything else could block the reader, or change under it."""
    try:
        seals = fcntl.fcntl(fds[0], memfd.F_GET_SEALS)
    except (OSError, IndexError):
        raise ValueError("a result descriptor that is no memfd") from None
    if seals & memfd.SEALED != memfd.SEALED:
        raise ValueError("a result memfd that is not sealed")
    size = os.fstat(fds[0]).st_size
    if size > maximum:
        return Result(too_large=size)
    return Result(value=os.pread(fds[0], size, 0))


def _array(body: memoryview, count: int) -> list[Any]:
    # The codec's decoder, for it does not let a short frame make it allocate without end.
    value = decode(body)
    parts: list[Any] = value
    if type(value) is not list or len(parts) != count:
        raise ValueError(f"a frame whose body is no array of {count}")
    return parts


def _texts(body: memoryview, count: int) -> list[str]:
    parts = _array(body, count)
    if not all(type(part) is str for part in parts):
        raise ValueError("a frame that holds something else than text")
    return parts


class Reports:
    """The progress reports of one sandbox, so many per second and no more."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = float(_REPORTS_BURST)
        self._at = 0.0

    def read(self, body: memoryview, now: float) -> tuple[float, str, Any] | None:
        """A report; None for one too many, which is not even looked at."""
        self._left = min(_REPORTS_BURST, self._left + (now - self._at) * _REPORTS_RATE)
        self._at = now
        if self._left < 1.0:
            return None
        self._left -= 1.0
        fraction, message, data = _array(body, 3)
        if type(fraction) is not float or type(message) is not str:
            raise ValueError("a progress report that is none")
        return min(1.0, max(0.0, fraction)), message[:_MESSAGE_MAX], data
