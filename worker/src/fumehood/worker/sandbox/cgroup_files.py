"""Reading and writing the files of one cgroup, and the controller whose files v1 and v2 share."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Protocol

UNKNOWN = -2  # of a limit: nobody knows what is set


class Memory(Protocol):
    """The memory controller of one leaf, v1 or v2."""

    #: Becomes ready when memory has run out, for ``oom_events`` of poll(2); -1 where none does.
    oom_fd: int
    oom_events: int

    def limit(self, amount: int | None) -> None:
        """Hold the leaf to so many bytes. Raises ``OSError`` when it has more than that already."""
        ...

    def begin(self) -> None:
        """Start counting anew."""
        ...

    def seen(self) -> tuple[int, int | None, bool]:
        """Since ``begin``: OOM kills, the peak in bytes, and whether the limit was the cause."""
        ...

    def oom_kills(self) -> int:
        """OOM kills since ``begin``; takes back what made ``oom_fd`` ready."""
        ...

    def usage(self) -> int:
        """Bytes charged now."""
        ...

    def reclaim(self) -> None:
        """Give back what nobody needs. May take some 0.5 ms a MiB."""
        ...

    def stuck(self) -> int:
        """Bytes charged now that could not be given back for somebody who needs them."""
        ...

    def close(self) -> None:
        """Close its files."""
        ...


class Clock(Protocol):
    """What counts the CPU time of one leaf."""

    def now(self) -> float:
        """Seconds used in it since it was made, by the dead as well."""
        ...

    def close(self) -> None:
        """Close its file."""
        ...


class Processes:
    """The pids controller of one leaf: v1 and v2 have the same files."""

    def __init__(self, path: Path) -> None:
        self._max = path / "pids.max"
        self._set: int | None = UNKNOWN
        self._behind_door: int | None = UNKNOWN
        self._current_fd = os.open(path / "pids.current", os.O_RDONLY | os.O_CLOEXEC)
        self._events_fd = open_if_any(path / "pids.events")
        self._events = 0

    def limit(self, count: int | None) -> None:
        """Let it have so many processes and threads: what is in it now counts as one.

        What else is charged to it are zombies of the last job, which wait to be reaped by a parent
        or init. The next has nothing to do with them, and gets so much more.
        """
        self._behind_door = UNKNOWN
        if count is not None:
            count += max(0, (number(self._current_fd) or 0) - 1)
        if count != self._set:
            self._write(count)

    def _write(self, count: int | None) -> None:
        self._set = UNKNOWN
        write(self._max, "max" if count is None else str(count))
        self._set = count

    def close_door(self) -> None:
        """Let nothing in it fork until ``limit`` or ``begin`` is called."""
        if self._behind_door == UNKNOWN:
            self._behind_door = None if self._set == UNKNOWN else self._set
        with contextlib.suppress(OSError):  # somebody removed it
            self._write(0)

    def begin(self) -> None:
        """Start counting anew."""
        if self._behind_door != UNKNOWN:
            self.limit(self._behind_door)
        self._events = self._count()

    def hits(self) -> int:
        """Forks that the limit has refused since ``begin``."""
        return self._count() - self._events

    def _count(self) -> int:
        return 0 if self._events_fd < 0 else counter(self._events_fd, b"max ")

    def close(self) -> None:
        """Close its files."""
        close(self._current_fd, self._events_fd)


def counter(fd: int, name: bytes) -> int:
    """The number behind ``name``, blank included, in a file of such lines; 0 if it is not there.

    A cgroup that somebody removed has counted nothing.
    """
    try:
        text = b"\n" + os.pread(fd, 4096, 0)
    except OSError:
        return 0
    found = text.partition(b"\n" + name)[2].split(maxsplit=1)
    return int(found[0]) if found else 0


def number(fd: int) -> int | None:
    """The number that a file consists of; None when its cgroup was removed."""
    try:
        return int(os.pread(fd, 64, 0))
    except OSError:
        return None


def stuck(path: Path, usage: int, cache: bytes) -> int:
    """The part of ``usage`` that is not page cache of files on disk, by a memory.stat."""
    try:
        fd = os.open(path / "memory.stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0  # somebody removed it
    try:
        # The cache includes tmpfs, whose pages can go nowhere.
        return usage - counter(fd, cache) + counter(fd, b"shmem ")
    finally:
        os.close(fd)


def write(path: Path, text: str) -> None:
    """Write to one of the kernel's files. Raises ``OSError`` that names it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as exc:
        why = os.strerror(exc.errno or errno.EIO)
        raise OSError(exc.errno, f"{why}: writing {text!r}", str(path)) from None
    finally:
        os.close(fd)


def open_if_any(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor, or -1 where this kernel has no such file."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError:
        return -1


def close(*fds: int) -> None:
    """Close those that are open."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def pids_below(path: Path) -> list[int]:
    """The processes in a cgroup and in those below it. Those of other PID namespaces are left out.

    The kernel shows them as 0, which as an argument of kill(2) would be this process's own group.
    """
    found: list[int] = []
    for here, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            found += map(int, (Path(here) / "cgroup.procs").read_bytes().split())
    return [pid for pid in found if pid > 0]


def remove(path: Path) -> None:
    """Remove a cgroup and those below it: a job may have made some in its own."""
    for here, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(here)
