"""cgroup v2 leaves: a name for everything that a sandbox starts, and one write that kills it all.

No controller is needed for that, so it works on hybrid hosts too, where limits stay with v1.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_PREFIX = "fumehood-"
_EMPTY_MAX, _EMPTY_STEP = 2.0, 0.005  # seconds until what was killed is gone, and between looks


class Leaf:
    """The cgroup of one seat: sandboxes use it one after the other."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        # The file is handed to sandboxes, never a descriptor of the directory: that one would be
        # a way out (CVE-2024-21626).
        self.procs_fd = os.open(path / "cgroup.procs", os.O_RDWR | os.O_CLOEXEC)
        self.events_fd = os.open(path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        self._kill_fd = _open_kill(path)

    def populated(self) -> bool:
        """Whether any process is left in it. A leaf that somebody removed was empty."""
        try:
            return b"populated 1" in os.pread(self.events_fd, 128, 0)
        except OSError:
            return False

    def pids(self) -> list[int]:
        """The processes in it."""
        try:
            return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def kill(self) -> None:
        """SIGKILL every process in it, those being forked included."""
        with contextlib.suppress(OSError):  # somebody removed it: it was empty
            os.write(self._kill_fd, b"1")

    def close(self) -> None:
        """Give it up; the directory goes when it is empty."""
        for fd in (self.procs_fd, self.events_fd, self._kill_fd):
            os.close(fd)
        _remove(self.path)


class Tree:
    """The cgroup of one manager, with a leaf for each seat below it."""

    def __init__(self, parent: Path, owner: int) -> None:
        self.path = parent / f"{_PREFIX}{owner}-{_start_time(owner)}-{time.monotonic_ns():x}"
        self.path.mkdir()
        self.kill_fd = _open_kill(self.path)
        self._leaves = 0

    def leaf(self) -> Leaf:
        """A new leaf."""
        self._leaves += 1
        return Leaf(self.path / f"seat-{self._leaves}")

    def end(self) -> bool:
        """Kill what is left in it. False while something is."""
        if not _populated(self.path):
            return True
        _kill(self.path)
        return False

    def close(self) -> None:
        """Remove it and the leaves that are empty."""
        os.close(self.kill_fd)
        _remove(self.path)


def make_tree() -> Tree:
    """The tree of this process. Raises ``OSError`` where this host lets it have none."""
    parent = _own_cgroup()
    _sweep(parent)
    tree = Tree(parent, os.getpid())
    try:
        leaf = tree.leaf()
        if leaf.populated():
            raise OSError("a new cgroup is not empty")
        leaf.close()
    except OSError:
        tree.close()
        raise
    return tree


def _own_cgroup() -> Path:
    mount = _mount_point()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return mount / line[3:].lstrip("/")
    raise OSError("this process has no cgroup v2")


def _mount_point() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            return Path(fields.split()[4])
    raise OSError("no cgroup v2 is mounted")


def _open_kill(path: Path) -> int:
    # Linux before 5.14 has no such file: there the subreapers do better than a loop of kills.
    return os.open(path / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)


def _sweep(parent: Path) -> None:
    """Kill and remove what managers that were killed themselves have left behind."""
    for path in parent.glob(f"{_PREFIX}*"):
        try:
            owner, started = path.name.removeprefix(_PREFIX).split("-")[:2]
            alive = _start_time(int(owner)) == int(started)
        except (OSError, ValueError):
            alive = False
        if not alive:
            _clear(path)


def _clear(path: Path) -> None:
    _kill(path)
    end = time.monotonic() + _EMPTY_MAX
    while _populated(path) and time.monotonic() < end:
        time.sleep(_EMPTY_STEP)
    _remove(path)


def _kill(path: Path) -> None:
    with contextlib.suppress(OSError):
        (path / "cgroup.kill").write_text("1")


def _populated(path: Path) -> bool:
    try:
        return "populated 1" in (path / "cgroup.events").read_text()
    except OSError:
        return False


def _remove(path: Path) -> None:
    """Remove a cgroup and those below it: a job may have made some in its own."""
    for here, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            Path(here).rmdir()


def _start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: with its id, a name that is never reused.

    Raises ``OSError`` for one that has ended, reaped or not.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        raise ProcessLookupError(f"process {pid} has ended")
    return int(fields[19])
