"""Frames as a sandbox could forge them, and the manager's own reader to feed them to."""

from __future__ import annotations

import array
import contextlib
import os
import random
import socket
import time
from typing import Any

import msgpack

from fumehood.worker.sandbox import protocol
from fumehood.worker.sandbox.channel import Channel
from fumehood.worker.sandbox.job import Job

LETTERS = [
    protocol.READY, protocol.VALUE, protocol.VALUE_FD, protocol.ERROR, protocol.TOO_LARGE,
    protocol.REFUSED, protocol.PROGRESS, protocol.SETUP_FAILED, protocol.ARGUMENTS, b"?",
]  # fmt: skip
_TIME_MAX = 1.0  # seconds for a handful of frames; a thousand times what they take
_buffer = bytearray(protocol.FRAME_MAX)


def plausible(seed: int) -> bytes:
    """A body that is nearly right: the parts of an honest one, in odd numbers and types."""
    chance = random.Random(seed)
    parts: list[Any] = [
        "text", 0, -1, 1.5, float("nan"), None, True, b"bytes", [], {}, 2**63, "\u20ac" * 50,
    ]  # fmt: skip
    body = msgpack.packb([chance.choice(parts) for _ in range(chance.randrange(5))])
    return body[: chance.randrange(len(body) + 1)] if chance.random() < 0.3 else body


def feed(
    frames: list[bytes], *, ready: bool = True, fds: int = 0, over: socket.socket | None = None
) -> Channel:
    """Have the manager's reader read these frames. Anything but its own verdict is an error."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    channel = Channel(ours if over is None else over.dup(), _buffer, lambda _: None)
    with contextlib.closing(channel), contextlib.closing(ours), contextlib.closing(theirs):
        channel.job = Job("job", "task", b"", 1.0, 1 << 20, 1 << 20, on_progress=_listen)
        channel.given_at = time.monotonic()
        channel.ready_at = channel.given_at if ready else 0.0
        for frame in frames:
            with contextlib.suppress(OSError):  # it was closed for the frame before
                _send(theirs, frame, fds)
            channel.read()
        theirs.close()
        channel.read_last()
        assert time.monotonic() - channel.given_at < _TIME_MAX, "it took too long"
    return channel


def _send(sock: socket.socket, frame: bytes, fds: int) -> None:
    if not fds:
        sock.send(frame)
        return
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        rights = array.array("i", [null] * fds)
        sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    finally:
        os.close(null)


def _listen(fraction: float, message: str, data: Any) -> None:
    assert 0.0 <= fraction <= 1.0
    assert len(message) <= 1000
