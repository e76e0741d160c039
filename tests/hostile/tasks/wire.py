"""Tasks that speak over the job socket themselves, and break off."""

from __future__ import annotations

import os
import signal
import socket
import time

from fumehood.common import task

JOB_FD = 3


def _end(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exits":
        os._exit(0)
    elif how == "crashes":
        os.abort()
    elif how == "closes":
        os.close(JOB_FD)
        time.sleep(20)
    elif how == "hangs":
        time.sleep(20)


@task
def break_off(frame: bytes, how: str) -> str:
    """Send a frame, whole or in part, and end."""
    with socket.socket(fileno=os.dup(JOB_FD)) as channel:
        channel.send(frame)
    _end(how)
    return "returned"


@task
def break_off_between(frames: list[bytes], how: str) -> str:
    """Send several frames without a pause, and end."""
    with socket.socket(fileno=os.dup(JOB_FD)) as channel:
        for frame in frames:
            channel.send(frame)
    _end(how)
    return "returned"


@task
def shut_down(way: int) -> str:
    with socket.socket(fileno=os.dup(JOB_FD)) as channel:
        channel.shutdown(way)
    return "returned"


@task
def fill_the_socket() -> str:
    """Reports until nobody takes them; then go on in peace."""
    with socket.socket(fileno=os.dup(JOB_FD)) as channel:
        channel.setblocking(False)
        sent = 0
        while sent < 100_000:
            try:
                channel.send(b"P\x93\xcb?\xe0\0\0\0\0\0\0\xa0\xc0")
            except BlockingIOError:
                break
            sent += 1
        channel.setblocking(True)  # it shares this with the runner's own descriptor
    return "returned"


@task
def read_the_socket() -> str:
    """Whether the manager ever says anything that is not for this job."""
    with socket.socket(fileno=os.dup(JOB_FD)) as channel:
        channel.setblocking(False)
        try:
            return f"read {len(channel.recv(1 << 16))} bytes"
        except BlockingIOError:
            return "nothing to read"
