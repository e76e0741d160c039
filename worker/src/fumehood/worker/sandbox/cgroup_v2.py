"""What cgroup v2 has: one hierarchy for all, one write that kills all, and delegation.

Sources: Documentation/admin-guide/cgroup-v2.rst of Linux; systemd's CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from pathlib import Path

from fumehood.worker.sandbox import cgroup_files, killer
from fumehood.worker.sandbox.cgroup_files import UNKNOWN
from fumehood.worker.sandbox.cgroup_host import Place

#: The cgroup into which the node and its company move where their own is to have controllers. Not
#: like the names of trees: it is no tree, and is not swept.
NODE = "fumehood.node"

_MOVES = 20  # looks for processes forked while others were moved


class MemoryV2:
    """The memory controller of one leaf; fits ``cgroup_files.Memory``."""

    oom_events = select.POLLPRI

    def __init__(self, path: Path) -> None:
        self._path = path
        self._set: int | None = UNKNOWN
        self._usage_fd = self._events_fd = self._peak_fd = -1
        try:
            self._usage_fd = os.open(path / "memory.current", os.O_RDONLY | os.O_CLOEXEC)
            self._events_fd = os.open(path / "memory.events", os.O_RDONLY | os.O_CLOEXEC)
            self._peak_restarts = self._open_peak(path / "memory.peak")
            _set_if_any(path / "memory.oom.group", "1")
            _set_if_any(path / "memory.swap.max", "0")
        except OSError:
            self.close()
            raise
        self.oom_fd = self._events_fd
        self._kills = self._limit_hits = 0
        self._old_peak = 0

    def _open_peak(self, path: Path) -> bool:
        """Whether a write has it count anew, from Linux 6.12; from 5.19 it knows one peak only."""
        self._peak_fd = cgroup_files.open_if_any(path, os.O_RDWR)
        if self._peak_fd < 0:
            self._peak_fd = cgroup_files.open_if_any(path)
            return False
        try:
            os.write(self._peak_fd, b"0")
        except OSError:
            return False
        return True

    def limit(self, amount: int | None) -> None:
        """Hold the leaf to so many bytes. Raises ``OSError`` when it has more than that already."""
        if amount == self._set:
            return
        if amount is not None and self.usage() > amount:
            self.reclaim()
            if self.usage() > amount:  # the kernel would kill what is in it; v1 says no
                raise OSError(errno.EBUSY, "more memory is in use", str(self._path / "memory.max"))
        self._set = UNKNOWN
        cgroup_files.write(self._path / "memory.max", "max" if amount is None else str(amount))
        self._set = amount

    def begin(self) -> None:
        """Start counting anew."""
        self._kills, self._limit_hits = self._counts()
        if self._peak_restarts:
            with contextlib.suppress(OSError):
                os.write(self._peak_fd, b"0")
        else:
            self._old_peak = self._peak() or 0

    def seen(self) -> tuple[int, int | None, bool]:
        """Since ``begin``: OOM kills, the peak in bytes, and whether the limit was the cause.

        A peak that cannot be counted anew is known only where it exceeds all before it.
        """
        kills, hits = self._counts()
        kills -= self._kills
        at_limit = kills > 0 and hits > self._limit_hits
        peak = self._peak()
        if peak is not None and not self._peak_restarts and peak <= self._old_peak:
            peak = None
        if peak is None and at_limit:
            peak = self._set
        return kills, peak, at_limit

    def _peak(self) -> int | None:
        return None if self._peak_fd < 0 else cgroup_files.number(self._peak_fd)

    def _counts(self) -> tuple[int, int]:
        fd = self._events_fd
        return cgroup_files.counter(fd, b"oom_kill "), cgroup_files.counter(fd, b"oom ")

    def oom_kills(self) -> int:
        """OOM kills since ``begin``; takes back what made ``oom_fd`` ready."""
        return self._counts()[0] - self._kills

    def usage(self) -> int:
        """Bytes charged now."""
        return cgroup_files.number(self._usage_fd) or 0

    def reclaim(self) -> None:
        """Give back what nobody needs: page cache, not tmpfs. From Linux 5.19."""
        with contextlib.suppress(OSError):  # EAGAIN: less than asked for, as is to be expected
            cgroup_files.write(self._path / "memory.reclaim", str(self.usage()))

    def stuck(self) -> int:
        """Bytes charged now that could not be given back for somebody who needs them."""
        return cgroup_files.stuck(self._path, self.usage(), b"file ")

    def close(self) -> None:
        """Close its files."""
        cgroup_files.close(self._usage_fd, self._events_fd, self._peak_fd)


class ClockV2:
    """CPU time, which v2 counts without a controller; fits ``cgroup_files.Clock``."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path / "cpu.stat", os.O_RDONLY | os.O_CLOEXEC)

    def now(self) -> float:
        """Seconds used in it since it was made, by the dead as well."""
        return cgroup_files.counter(self._fd, b"usage_usec ") / 1e6

    def close(self) -> None:
        """Close its file."""
        os.close(self._fd)


class KillFile:
    """Kills a cgroup and those below it by one write, from Linux 5.14."""

    is_sure = True

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)

    def __call__(self) -> None:
        """SIGKILL every process in it, those being forked included."""
        with contextlib.suppress(OSError):  # somebody removed it: it was empty
            os.write(self.fd, b"1")


# --- where a tree can stand -----------------------------------------------------------------


def find_room(place: Place, wanted: frozenset[str]) -> tuple[Path, dict[str, str]]:
    """The cgroup to make a tree in, and why it lacks which of the ``wanted`` controllers.

    A cgroup whose children have controllers may have no processes of its own. So the best is a
    cgroup that has them enabled; then one whose processes may be moved into a child; then, for
    root, the cgroup beside this one, for what this one has its siblings can have.
    """
    own = place.own.parent if place.own.name == NODE else place.own
    lacking = {
        name: f"cgroup v2 has no {name} controller for {own}" for name in wanted - _available(own)
    }
    refusal = _enable(place, own, wanted - lacking.keys())
    if refusal is None:
        return own, lacking
    beside = own.parent
    if (beside / "cgroup.procs").exists() and os.access(beside, os.W_OK):
        return beside, lacking
    why = f"{refusal}; a unit with Delegate=yes has what is needed"
    return own, lacking | dict.fromkeys(wanted - lacking.keys(), why)


def pass_on(path: Path, controllers: frozenset[str]) -> None:
    """Let the children of a cgroup have controllers. Raises ``OSError``."""
    text = " ".join(f"+{name}" for name in sorted(controllers - _enabled(path)))
    if text:
        cgroup_files.write(path / "cgroup.subtree_control", text)


def _enable(place: Place, own: Path, controllers: frozenset[str]) -> str | None:
    """Enable them for the children of ``own``; else say why not.

    Its processes have to go first even where the kernel would not mind: with pids alone it takes
    them for threads, and the children could have no processes.
    """
    try:
        if controllers and (own / "cgroup.type").exists() and _processes(own):  # not the very root
            if not _may_move(place, own):
                return f"{own} has processes that are not this node's to move"
            _move_company(own)
        pass_on(own, controllers)
    except OSError as exc:
        return f"no controller can be enabled in {own}: {exc}"
    return None


def _may_move(place: Place, own: Path) -> bool:
    """Whether the processes of this cgroup are in the node's care: delegated, or its own."""
    if place.name == "/" or _is_delegated(own):  # "/" with processes is the top of a container
        return True
    ours = {os.getpid(), *killer.descendants_of(os.getpid())}
    return ours.issuperset(_processes(own))


def _is_delegated(path: Path) -> bool:
    for name in ("user.delegate", "trusted.delegate"):  # systemd's marks
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return 0 != path.stat().st_uid == os.geteuid()


def _move_company(own: Path) -> None:
    """Move all processes of a cgroup into its child ``NODE``. Raises ``OSError``."""
    node = own / NODE
    node.mkdir(exist_ok=True)
    for _ in range(_MOVES):
        company = _processes(own)
        if not company:
            return
        if 0 in company:  # of another PID namespace; written down, it would mean this process
            raise OSError(errno.EBUSY, "it has processes that cannot be seen", str(own))
        for pid in company:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                cgroup_files.write(node / "cgroup.procs", str(pid))
    raise OSError(errno.EBUSY, "its processes fork faster than they can be moved", str(own))


def _processes(path: Path) -> list[int]:
    return [int(pid) for pid in (path / "cgroup.procs").read_text().split()]


def _available(path: Path) -> set[str]:
    return _words(path / "cgroup.controllers")


def _enabled(path: Path) -> set[str]:
    return _words(path / "cgroup.subtree_control")


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _set_if_any(path: Path, text: str) -> None:
    if path.exists():
        cgroup_files.write(path, text)
