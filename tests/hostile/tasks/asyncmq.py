"""Tasks on which AsyncMQ is known to fail."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fumehood.common import task


@task
def return_bytes(size: int) -> bytes:
    return bytes(size)


@task
def die_in_mid_send(size: int, seconds: float) -> bytes:
    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    time.sleep(seconds / 2)
    return bytes(size)


@task
def ignore_sigterm(file: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(file).write_text(str(os.getpid()))
    time.sleep(30)


@task
def leave_grandchild(file: str) -> str:
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(30)"])
    Path(file).write_text(str(child.pid))
    return "returned"


class Payload:
    """Runs a program where somebody unpickles it."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@task
def return_payload(file: str) -> Any:
    return Payload(file)


@task
def raise_payload(file: str) -> None:
    exc = ValueError("with a payload")
    exc.args = (Payload(file),)
    raise exc


@task
def end(how: str) -> None:
    if how == "exit":
        sys.exit(3)
    faulthandler._sigsegv()  # type: ignore[attr-defined]
