"""A seat: what one sandbox after another uses. Clean by the time the next one sits down."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from pathlib import Path

from fumehood.worker.sandbox import memfd
from fumehood.worker.sandbox.cgroup import Leaf

# How every sandbox came to its task is of no interest to those who read the task's stack.
_OURS = re.compile(
    rf'  File "({re.escape(str(Path(__file__).parent))}/.*", line|<string>", line 1 in <module>)'
).match
_DIAG_MAX = 32 << 10  # bytes; faulthandler writes at most 100 frames for each of 100 threads
_F_SETSIG = 10  # of fcntl(2)


class Seat:
    """A number, a memfd for Python stacks, and a cgroup leaf where the host has cgroups."""

    def __init__(self, number: int, leaf: Leaf | None, lifeline: int) -> None:
        self.number = number
        self.leaf = leaf
        self.lifeline_fd = _killing_end(lifeline)
        self.diag_fd = os.memfd_create("fumehood-diag", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.diag_fd, _DIAG_MAX)
        # Sealed at its size: a task that finds the descriptor cannot grow it.
        fcntl.fcntl(
            self.diag_fd,
            memfd.F_ADD_SEALS,
            memfd.SEAL_SHRINK | memfd.SEAL_GROW | memfd.SEAL_SEAL,
        )

    def fds(self) -> list[int]:
        """What the zygote needs of it."""
        fds = [self.diag_fd, self.lifeline_fd]
        return fds if self.leaf is None else [*fds, *self.leaf.procs_fds]

    def guard(self, pid: int) -> None:
        """Have the kernel kill process ``pid`` when this manager is gone, whatever else is."""
        fcntl.fcntl(self.lifeline_fd, fcntl.F_SETOWN, pid)

    def stack_size(self) -> int:
        """Bytes of stack written since the last ``take_stack``."""
        return min(os.lseek(self.diag_fd, 0, os.SEEK_CUR), _DIAG_MAX)

    def take_stack(self) -> str:
        """The Python stack that was written last, and room for the next."""
        size = self.stack_size()
        if not size:
            return ""
        text = os.pread(self.diag_fd, size, 0).decode("utf-8", "backslashreplace")
        os.pwrite(self.diag_fd, bytes(size), 0)
        os.lseek(self.diag_fd, 0, os.SEEK_SET)
        lines = text.replace("\0", "").strip().splitlines()
        return "\n".join(line for line in lines if not _OURS(line))

    def abandon(self) -> None:
        """Give it up with something still in it: its cgroup stays, to be swept later."""
        os.close(self.diag_fd)
        os.close(self.lifeline_fd)

    def close(self) -> None:
        """Give it up."""
        os.close(self.diag_fd)
        os.close(self.lifeline_fd)
        if self.leaf is not None:
            self.leaf.close()


def _killing_end(lifeline: int) -> int:
    """The pipe's reading end, opened anew, that sends SIGKILL to its owner when the pipe closes.

    Owner and signal belong to an open file, so each seat has its own; each sandbox in turn is made
    its owner. PDEATHSIG would tie it to the zygote, whose death must cost no job its verdict.
    """
    try:
        own = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return os.dup(lifeline)  # without /proc the zygote's own watch over the manager remains
    fcntl.fcntl(own, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    return own
