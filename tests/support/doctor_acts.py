"""What tests have jobs do, to see for themselves what a doctor claims: none of it is its own."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from fumehood.common import task

_SLEEPER = "import time; time.sleep(20)"


@task
def fill_list(size: int) -> str:
    kept: list[bytes] = []
    while sum(map(len, kept)) < size:
        kept.append(os.urandom(1 << 18) * 8)
    return "unbounded"


@task
def fill_memfd(size: int) -> str:
    with os.fdopen(os.memfd_create("test"), "wb") as file:
        for _ in range(size >> 16):
            file.write(b"." * (1 << 16))
    return "unbounded"


@task
def leave_program_and_hang(mark: str) -> None:
    """Leave a program of that argument, in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", _SLEEPER, mark])  # noqa: S606
        os._exit(0)
    while True:
        time.sleep(1)


@task
def post(port: int, text: bytes) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(text)
    except OSError as exc:
        return f"errno {exc.errno}"
    return "sent"


@task
def put(path: str, text: str) -> str:
    try:
        Path(path).write_text(text)
    except OSError as exc:
        return f"errno {exc.errno}"
    return Path(path).read_text()


@task
def is_there(path: str) -> bool:
    return Path(path).exists()
