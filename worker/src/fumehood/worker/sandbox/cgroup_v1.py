"""What cgroup v1 has: a hierarchy for each controller, and no way to kill all at once.

Sources: Documentation/admin-guide/cgroup-v1/memory.rst and freezer-subsystem.rst of Linux.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

from fumehood.worker.sandbox import cgroup_files
from fumehood.worker.sandbox.cgroup_files import UNKNOWN, Processes

#: Controllers that limit, and those that stand in for what only v2 has.
LIMITING = ("memory", "pids")
STANDING_IN = ("freezer", "cpuacct")

# The kernel charges memory in lots, and tries a huge page first: a limit that was hit may leave
# the peak this much below it.
_LOT = 2 << 20
_FREEZE_MAX, _FREEZE_STEP = 0.02, 0.0005  # seconds until what is to be killed stands still
_ROUNDS = 20  # of killing what has been forked meanwhile, where nothing could be frozen


class MemoryV1:
    """The memory controller of one leaf; fits ``cgroup_files.Memory``."""

    oom_events = select.POLLIN

    def __init__(self, path: Path) -> None:
        self._path = path
        self._set: int | None = UNKNOWN
        self._counts_swap = (path / "memory.memsw.limit_in_bytes").exists()
        self._fds: list[int] = []
        try:
            self._peak_fd = self._open("memory.max_usage_in_bytes", os.O_RDWR)
            self._usage_fd = self._open("memory.usage_in_bytes", os.O_RDONLY)
            self._oom_control_fd = self._open("memory.oom_control", os.O_RDONLY)
        except OSError:
            self.close()
            raise
        self.oom_fd = self._notice_oom()
        self._kills = 0

    def _open(self, name: str, flags: int) -> int:
        fd = os.open(self._path / name, flags | os.O_CLOEXEC)
        self._fds.append(fd)
        return fd

    def _notice_oom(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            text = f"{fd} {self._oom_control_fd}"
            cgroup_files.write(self._path / "cgroup.event_control", text)
        except OSError:
            os.close(fd)
            return -1
        self._fds.append(fd)
        return fd

    def limit(self, amount: int | None) -> None:
        """Hold the leaf to so many bytes, swap included where swap is counted."""
        before = self._set
        if amount == before:
            return
        files = ["memory.limit_in_bytes"]
        if self._counts_swap:
            files.append("memory.memsw.limit_in_bytes")  # never below the other one
        if before == UNKNOWN:
            self._write(files[::-1], None)
        elif amount is None or (before is not None and amount > before):
            files.reverse()
        self._write(files, amount)
        self._set = amount

    def _write(self, files: list[str], amount: int | None) -> None:
        self._set = UNKNOWN
        for name in files:
            cgroup_files.write(self._path / name, "-1" if amount is None else str(amount))

    def begin(self) -> None:
        """Start counting anew."""
        with contextlib.suppress(OSError):
            os.write(self._peak_fd, b"0")
        self._kills = self._count()

    def seen(self) -> tuple[int, int | None, bool]:
        """Since ``begin``: OOM kills, the peak in bytes, and whether the limit was the cause."""
        kills = self._count() - self._kills
        peak = cgroup_files.number(self._peak_fd)
        limit = self._set
        at_limit = bool(kills and limit and peak and peak + _LOT >= limit)
        return kills, peak, at_limit

    def oom_kills(self) -> int:
        """OOM kills since ``begin``; takes back what made ``oom_fd`` ready."""
        if self.oom_fd >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.oom_fd)
        return self._count() - self._kills

    def _count(self) -> int:
        return cgroup_files.counter(self._oom_control_fd, b"oom_kill ")

    def usage(self) -> int:
        """Bytes charged now."""
        return cgroup_files.number(self._usage_fd) or 0

    def reclaim(self) -> None:
        """Give back what nobody needs: page cache, not tmpfs."""
        with contextlib.suppress(OSError):
            cgroup_files.write(self._path / "memory.force_empty", "0")

    def stuck(self) -> int:
        """Bytes charged now that could not be given back for somebody who needs them."""
        return cgroup_files.stuck(self._path, self.usage(), b"cache ")

    def close(self) -> None:
        """Close its files."""
        cgroup_files.close(*self._fds)


class ClockV1:
    """CPU time by the cpuacct controller; fits ``cgroup_files.Clock``."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path / "cpuacct.usage", os.O_RDONLY | os.O_CLOEXEC)

    def now(self) -> float:
        """Seconds used in it since it was made, by the dead as well."""
        return (cgroup_files.number(self._fd) or 0) / 1e9

    def close(self) -> None:
        """Close its file."""
        os.close(self._fd)


class KillLoop:
    """Kills a cgroup process by process: for v1, and for v2 before Linux 5.14.

    What stands still cannot fork, and neither can what may have no process more: either is enough
    to find everything in one look. Without both the fastest forker may win, and ``is_sure`` says
    so.
    """

    def __init__(self, path: Path, freezer: Path | None, processes: Processes | None) -> None:
        self._path = path  # of the cgroup whose list of processes counts
        self._freezer = freezer
        self._processes = processes

    @property
    def is_sure(self) -> bool:
        """Whether nothing can escape it."""
        return self._freezer is not None or self._processes is not None

    def __call__(self) -> None:
        """SIGKILL all that is in the cgroup and below it."""
        if self._processes is not None:
            self._processes.close_door()
        if self._freezer is not None:
            _freeze(self._freezer)
        killed: set[int] = set()
        for _ in range(_ROUNDS):
            new = set(cgroup_files.pids_below(self._path)) - killed
            if not new:
                break
            for pid in new:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            killed |= new
        if self._freezer is not None:
            _thaw(self._freezer)


def _freeze(path: Path) -> None:
    """Stop everything in a cgroup, v1 or v2, and wait for it, within bounds."""
    v1 = (path / "freezer.state").exists()
    order, state, frozen = (
        ("freezer.state", "freezer.state", "FROZEN\n")
        if v1
        else ("cgroup.freeze", "cgroup.events", "frozen 1")
    )
    end = time.monotonic() + _FREEZE_MAX
    with contextlib.suppress(OSError):
        cgroup_files.write(path / order, "FROZEN" if v1 else "1")
        while frozen not in (path / state).read_text() and time.monotonic() < end:
            time.sleep(_FREEZE_STEP)


def _thaw(path: Path) -> None:
    for name, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):
            cgroup_files.write(path / name, text)
