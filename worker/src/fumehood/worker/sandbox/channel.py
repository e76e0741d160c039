"""What manager and sandbox say to each other over a job socket, as the manager sees it.

Whatever comes out of that socket may be forged: each reader here raises ``ValueError`` or
``DecodeError`` for what no honest sandbox sends, and none trusts a size, a type or a descriptor.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import struct
import time
from _socket import socket
from collections.abc import Callable, Sequence
from typing import Any

from fumehood.common.codec import decode
from fumehood.common.errors import DecodeError
from fumehood.common.outcome import ErrorInfo
from fumehood.worker.sandbox import memfd, protocol
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.verdict import Result, SetupFault

log = logging.getLogger("fumehood.sandbox")

_READY = struct.Struct("d")
_AT_ONCE = 64  # frames read in one go; what floods its socket waits for its turn like the others
_LAST_FRAMES = 400  # that a socket's buffer can hold at a sandbox's end: progress, and one result
_REPORTS_BURST = 20  # progress reports at once
_REPORTS_RATE = 40.0  # progress reports per second; an honest sandbox sends half as many
_MESSAGE_MAX = 1000  # characters of a report's text


class Channel:
    """The manager's end of one job socket, and what has been said over it so far.

    ``fault`` is not empty once something came that no honest sandbox sends; nothing is read then
    any more. Instants are monotonic seconds.
    """

    def __init__(self, ours: socket, buffer: bytearray, on_close: Callable[[int], None]) -> None:
        self._socket = ours
        self._on_close = on_close  # told the descriptor before it is closed
        self._buffer = buffer
        self._reports: Reports | None = None
        self.job: Job | None = None
        self.given_at = 0.0
        self.ready_at = 0.0  # 0 until the task's code has started
        self.result: Result | None = None
        self.setup_fault: SetupFault | None = None
        self.fault = ""

    @property
    def fd(self) -> int:
        """Its descriptor; -1 when it is closed."""
        return self._socket.fileno()

    def give(self, job: Job, rlimits: Sequence[tuple[int, int, int]], *, joins: bool) -> None:
        """Hand over a job, the limits that the sandbox has to set for itself, and whether it has
        to join the cgroups that hold the others.

        A sandbox that is gone takes none; its end is reported elsewhere.
        """
        self.job, self.given_at = job, time.monotonic()
        try:
            send_job(self._socket, job, rlimits, joins=joins)
        except OSError:
            pass

    def read(self, frames: int = _AT_ONCE) -> int:
        """Read up to ``frames`` frames that are there, without waiting; how many there were."""
        count = 0
        while count < frames and self._read_one():
            count += 1
        return count

    def read_last(self) -> None:
        """Read what is left of a sandbox that has ended."""
        if self.read(_LAST_FRAMES) == _LAST_FRAMES:
            self._break_off("more frames at its end than a sandbox has to send")

    def close(self) -> None:
        """Close it: a parked sandbox leaves then. Idempotent."""
        if self.fd >= 0:
            self._on_close(self.fd)
            self._socket.close()

    def _read_one(self) -> bool:
        if self.fd < 0:
            return False
        fds: list[int] = []
        try:
            frame, fds = self._receive()
            if frame:
                self._take(bytes(frame[:1]), frame[1:], fds)
                return True
            self.close()
        except BlockingIOError:
            pass
        except (ValueError, DecodeError) as exc:
            self._break_off(str(exc))
        except OSError:
            self.close()
        finally:
            for fd in fds:
                os.close(fd)
        return False

    def _receive(self) -> tuple[memoryview, list[int]]:
        try:
            return protocol.receive(self._socket, self._buffer, max_fds=1)
        except ConnectionResetError:
            # It has ended with a frame of ours unread. That is told once, before what it had sent.
            return protocol.receive(self._socket, self._buffer, max_fds=1)

    def _break_off(self, fault: str) -> None:
        self.fault = self.fault or fault
        self.close()

    def _take(self, kind: bytes, body: memoryview, fds: list[int]) -> None:
        job, ready = self.job, bool(self.ready_at)
        if kind == protocol.SETUP_FAILED and not ready:
            self.setup_fault = read_setup_fault(body)
        elif kind == protocol.READY and job is not None and not ready:
            # The sandbox's own word, and therefore bounded by what is known here.
            self.ready_at = min(max(read_ready(body), self.given_at), time.monotonic())
        elif kind in protocol.RESULTS and job and ready and self.result is None:
            self.result = read_result(kind, body, fds, job.result_max)
        elif kind == protocol.PROGRESS and job and ready and self.result is None:
            self._report(job, body)
        else:
            raise ValueError(f"a frame {kind!r} that is not due")

    def _report(self, job: Job, body: memoryview) -> None:
        if job.on_progress is None:
            return
        self._reports = self._reports or Reports()
        said = self._reports.read(body, time.monotonic())
        if said is None:
            return
        try:
            job.on_progress(*said)
        except Exception:  # the listener's own: the task has nothing to do with it
            log.exception("a progress listener raised", extra={"job": job.job_id})


def send_job(
    channel: socket,
    job: Job,
    rlimits: Sequence[tuple[int, int, int]] = (),
    *,
    joins: bool = False,
) -> None:
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
        job.soft_timeout is not None and job.soft_timeout < job.timeout,
        tuple(rlimits),
        joins,
    )
    channel.send(frame)
    if not inline:
        _send_memfd(channel, job.arguments)


def _send_memfd(channel: socket, arguments: bytes) -> None:
    memfd = os.memfd_create("arguments", os.MFD_CLOEXEC)
    try:
        view = memoryview(arguments)
        while view:
            view = view[os.write(memfd, view) :]
        os.lseek(memfd, 0, os.SEEK_SET)
        protocol.send(channel, protocol.ARGUMENTS, [memfd])
    finally:
        os.close(memfd)


def read_ready(body: memoryview) -> float:
    """When the task's code started, as the sandbox says; a monotonic instant in seconds."""
    (at,) = _READY.unpack(body) if len(body) == _READY.size else (0.0,)
    return float(at) if math.isfinite(at) else 0.0


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
