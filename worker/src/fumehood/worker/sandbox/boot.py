"""The first moments of a zygote's process, before it becomes one by a second exec.

What needs ctypes is done here and outlives the exec, so that the zygote, and every sandbox after
it, is a process that never loaded it: each shared library in a zygote makes each fork dearer.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from fumehood.worker.sandbox import kernel

COMMAND = "from fumehood.worker.sandbox.{module} import main; main({fd})"


def main(control_fd: int) -> NoReturn:
    """Adopt the orphans of sandboxes, then become the zygote on ``control_fd``."""
    kernel.become_subreaper()
    zygote = COMMAND.format(module="zygote", fd=control_fd)
    os.execv(sys.executable, [sys.executable, "-c", zygote])  # noqa: S606
