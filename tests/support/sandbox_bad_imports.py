"""A task module that fails at import, in the way that ``BAD_IMPORT`` says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fumehood.common import task

_HOW = os.environ.get("BAD_IMPORT", "")

if _HOW == "raise":
    raise ValueError("broken on purpose")
if _HOW == "exit":
    sys.exit(3)
if _HOW == "os-exit":
    os._exit(3)
if _HOW == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if _HOW == "hang":
    subprocess.Popen(["sleep", "3600.25"])
    time.sleep(3600)
if _HOW == "print":
    print("hello from the import")
if _HOW.startswith("until:") and not Path(_HOW.removeprefix("until:")).exists():
    raise ValueError("not yet")


def _nothing() -> None:
    pass


if _HOW == "many":
    for number in range(3000):
        task(name=f"many.{'x' * 60}.{number}")(_nothing)


@task
def fine() -> str:
    return "fine"
