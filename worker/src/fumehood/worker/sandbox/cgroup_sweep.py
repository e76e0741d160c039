"""Names of trees that tell whose they are, and the removal of those that are nobody's any more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from fumehood.worker.sandbox import cgroup_files
from fumehood.worker.sandbox.cgroup_v1 import KillLoop

PREFIX = "fumehood-"
_LOOK_MAX = 0.5  # seconds to look for them
_GONE_MAX, _GONE_STEP = 2.0, 0.005  # seconds until all that was killed is gone, and between looks


def new_name(owner: int) -> str:
    """A name for a tree of process ``owner``. Raises ``OSError`` when there is none."""
    return f"{PREFIX}{owner}-{start_time(owner)}-{_namespace():x}.{time.monotonic_ns():x}"


def sweep(parents: Iterable[Path]) -> None:
    """Kill and remove what managers that were killed themselves have left behind.

    Looks into ``parents``, and into the children of their parents: the unit or session in which a
    manager died is seldom the one in which the next is started. Bounded in time: what is not found
    or not gone by then is left to the next start.
    """
    stale = list(_find_stale(dict.fromkeys(parents), time.monotonic() + _LOOK_MAX))
    for path in stale:
        _kill(path)
    end = time.monotonic() + _GONE_MAX
    while any(map(is_populated, stale)) and time.monotonic() < end:
        time.sleep(_GONE_STEP)
    for path in stale:
        cgroup_files.remove(path)


def _find_stale(parents: Iterable[Path], end: float) -> Iterator[Path]:
    for parent in parents:
        for where in (parent, *_beside(parent)):
            yield from (path for path in where.glob(f"{PREFIX}*") if _is_stale(path.name))
            if time.monotonic() > end:
                return


def is_populated(path: Path) -> bool:
    """Whether any process is in a cgroup or below it. One that somebody removed has none."""
    try:
        return "populated 1" in (path / "cgroup.events").read_text()
    except OSError:
        return bool(cgroup_files.pids_below(path))


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: with its id, a name that is never reused.

    Raises ``OSError`` for one that has ended, reaped or not.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        raise ProcessLookupError(f"process {pid} has ended")
    return int(fields[19])


def _beside(parent: Path) -> Iterable[Path]:
    """The other children of the parent's parent, where that is a cgroup as well."""
    above = parent.parent
    if not (above / "cgroup.procs").exists():
        return ()
    return (path for path in above.iterdir() if path != parent and path.is_dir())


def _is_stale(name: str) -> bool:
    owner, _, rest = name.removeprefix(PREFIX).partition("-")
    started, _, rest = rest.partition("-")
    try:
        namespace = int(rest.partition(".")[0], 16) if "." in rest else _namespace()
        # The process ids of another PID namespace mean nothing here: those are for others to judge.
        return namespace == _namespace() and start_time(int(owner)) != int(started)
    except (OSError, ValueError):
        return True


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _kill(path: Path) -> None:
    try:
        cgroup_files.write(path / "cgroup.kill", "1")
    except OSError:
        frozen = (path / "freezer.state").exists() or (path / "cgroup.freeze").exists()
        KillLoop(path, path if frozen else None, None)()
