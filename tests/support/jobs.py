"""Tasks for tests of nodes: well-behaved ones, and those that are not."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fumehood.common import task


@task
def fine(number: int) -> int:
    return number * 2


@task
def fail(text: str) -> None:
    raise LookupError(text)


@task
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"


@task
async def doze(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


@task
def crash() -> None:
    ctypes.string_at(0)


@task
def leave(code: int) -> None:
    os._exit(code)


@task
def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task
def weigh(data: bytes) -> int:
    return len(data)


@task
def fill(size: int) -> bytes:
    return bytes(size)


@task
def write(text: str) -> None:
    print(text)


@task
def where() -> int:
    """The process id of this sandbox's zygote."""
    return os.getppid()


@task
def trail(folder: str, seconds: float) -> str:
    """Leave a file when it starts, with this process's id; another when it ends."""
    Path(folder, f"start-{os.getpid()}").write_text(str(os.getpid()))
    time.sleep(seconds)
    Path(folder, f"end-{os.getpid()}").write_text("")
    return "done"


@task
def spread(folder: str, seconds: float) -> str:
    """As ``trail``, with a grandchild in a session of its own that would live on."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    Path(folder, f"grandchild-{child.pid}").write_text(str(child.pid))
    return str(trail(folder, seconds))


@task(profile="untrusted")
def hostile() -> str:
    return "it ran"
