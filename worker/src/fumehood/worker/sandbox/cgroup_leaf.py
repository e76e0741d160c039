"""The cgroup of one seat, whichever hierarchies it takes: to join, to limit, to read, to kill."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from fumehood.worker.sandbox import cgroup_files
from fumehood.worker.sandbox.cgroup_files import Clock, Memory, Processes
from fumehood.worker.sandbox.cgroup_ground import PURPOSE, Ground
from fumehood.worker.sandbox.cgroup_sweep import is_populated
from fumehood.worker.sandbox.cgroup_v1 import ClockV1, MemoryV1
from fumehood.worker.sandbox.cgroup_v2 import ClockV2, KillFile, MemoryV2

#: Bytes that a job may leave charged to its leaf. By so much may the peak of the next one be too
#: high. A job that reads and writes nothing leaves 0.3 MiB, one that imports three modules 2.7.
RESIDUE_MAX = 8 << 20


@dataclass(frozen=True, slots=True)
class Seen:
    """What a leaf has counted since ``begin``, for all that ran in it, the dead as well."""

    oom_kills: int
    peak_memory: int | None  # bytes; None where the kernel does not tell
    process_limit_hits: int
    cpu: float | None  # seconds; None where nothing counts them
    at_memory_limit: bool  # for an OOM kill: whether the limit was the cause, or the host was full


class Leaf:
    """The cgroup of one seat: sandboxes use it one after the other.

    ``limit``, then ``begin``, then the job, then ``seen``. Needs some ten descriptors.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.path = ground.paths[0]
        self._close = contextlib.ExitStack()
        #: Files, never descriptors of directories: those would be a way out (CVE-2024-21626). Each
        #: sandbox writes "0" to all of them, in this order; the first decides what is killed.
        self.procs_fds: list[int] = []
        #: Ready for POLLPRI when ``populated`` may have changed; -1 where v1 has to be asked.
        self.events_fd = -1
        self.memory: Memory | None = None
        self.processes: Processes | None = None
        self.clock: Clock | None = None
        try:
            self._open(ground)
        except BaseException:
            self.close()
            raise

    def _open(self, ground: Ground) -> None:
        for path in ground.paths:
            self.procs_fds.append(self._keep(path / "cgroup.procs", os.O_RDWR))
        if ground.v2 is not None:
            self.events_fd = self._keep(ground.v2 / "cgroup.events", os.O_RDONLY)
        self._open_controllers(ground)
        self._kill = ground.killer(self.processes)
        if isinstance(self._kill, KillFile):
            self._close.callback(os.close, self._kill.fd)

    def _open_controllers(self, ground: Ground) -> None:
        if ground.v2 is not None and "memory" in ground.controllers:
            self.memory = MemoryV2(ground.v2)
        elif "memory" in ground.v1:
            self.memory = MemoryV1(ground.v1["memory"])
        if self.memory is not None:
            self._close.callback(self.memory.close)
        pids = ground.pids_path()
        if pids is not None:
            self.processes = Processes(pids)
            self._close.callback(self.processes.close)
        if ground.v2 is not None:
            self.clock = ClockV2(ground.v2)
        elif "cpuacct" in ground.v1:
            self.clock = ClockV1(ground.v1["cpuacct"])
        if self.clock is not None:
            self._close.callback(self.clock.close)
        self._cpu = 0.0
        self._peak_counts = True

    def _keep(self, path: Path, flags: int) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        self._close.callback(os.close, fd)
        return fd

    # --- what is in it ----------------------------------------------------------------------

    @property
    def procs_fd(self) -> int:
        """The first of ``procs_fds``."""
        return self.procs_fds[0]

    def purpose_of(self, number: int) -> str:
        """What the cgroup behind one of ``procs_fds`` is for, in the words of ``Tree.holds``."""
        path = self._ground.paths[number]
        found = [PURPOSE[name] for name, where in self._ground.v1.items() if where == path]
        return found[0] if number and found else "kill"

    def populated(self) -> bool:
        """Whether any process is left in it. A leaf that somebody removed was empty."""
        if self.events_fd < 0:
            return is_populated(self.path)
        try:
            return b"populated 1" in os.pread(self.events_fd, 128, 0)
        except OSError:
            return False

    def pids(self) -> list[int]:
        """The processes in it, and in what a job may have made below it."""
        return cgroup_files.pids_below(self.path)

    def kill(self) -> None:
        """SIGKILL every process in it, those being forked included."""
        self._kill()

    @property
    def kills_surely(self) -> bool:
        """Whether ``kill`` reaches even what forks as fast as it can."""
        return self._kill.is_sure

    # --- limits and counts ------------------------------------------------------------------

    def limit(self, memory: int | None, processes: int | None) -> None:
        """Set bytes, swap included, and a number of processes and threads; None is no limit.

        For when the sandbox is in it. Costs nothing where that is set already. What the tree does
        not hold is passed over.
        Raises ``OSError``: EBUSY when more memory is in use already.
        """
        if self.memory is not None:
            self.memory.limit(memory)
        if self.processes is not None:
            self.processes.limit(processes)

    def begin(self, *, all_of_it: bool = True) -> None:
        """Count from here on: a job is about to start. CPU time only, or ``all_of_it``."""
        if all_of_it and self.memory is not None:
            self.memory.begin()
        if all_of_it and self.processes is not None:
            self.processes.begin()
        self._cpu = 0.0 if self.clock is None else self.clock.now()

    def seen(self) -> Seen:
        """What was counted since ``begin``."""
        memory = (0, None, False) if self.memory is None else self.memory.seen()
        hits = 0 if self.processes is None else self.processes.hits()
        kills, peak, at_limit = memory
        # Most of it may be what another job had left.
        known = peak if self._peak_counts or at_limit else None
        return Seen(kills, known, hits, self.cpu(), at_limit)

    def cpu(self) -> float | None:
        """Seconds of CPU time since ``begin``."""
        return None if self.clock is None else self.clock.now() - self._cpu

    @property
    def oom_fd(self) -> int:
        """Ready for ``oom_events`` of poll(2) when memory has run out; -1 where nothing tells.

        v1 tells before it counts: ``oom_killed`` may have to be asked again a little later.
        """
        return -1 if self.memory is None else self.memory.oom_fd

    @property
    def oom_events(self) -> int:
        """What to wait for on ``oom_fd``: POLLIN or POLLPRI."""
        return 0 if self.memory is None else self.memory.oom_events

    def oom_killed(self) -> bool:
        """Whether the kernel has killed a process of the job for memory; makes ``oom_fd`` unready.

        v2 kills all of a job then; on v1 the others live on until somebody kills them.
        """
        return self.memory is not None and self.memory.oom_kills() > 0

    # --- between two jobs, and at the end ---------------------------------------------------

    def residue(self) -> int:
        """Bytes that are still charged to it, now that it is empty."""
        return 0 if self.memory is None else self.memory.usage()

    def is_clean(self) -> bool:
        """Whether the last job has left next to nothing; cheap, and nearly always so."""
        return self.residue() <= RESIDUE_MAX

    def clean(self) -> bool:
        """Give back what the last job has left; False when it counts against the next one.

        Files in tmpfs do, for one: such a leaf is better closed, and another made. Page cache does
        not, even if it has to be written to disk first. Takes some 0.5 ms for each MiB that is
        left: where it is not clean, the event loop had better not wait.
        """
        self._peak_counts = True
        if self.memory is None or self.is_clean():
            return True
        self.memory.reclaim()
        self._peak_counts = self.is_clean()
        return self._peak_counts or self.memory.stuck() <= RESIDUE_MAX

    def close(self) -> None:
        """Give it up; its directories go when they are empty."""
        self._close.close()
        self._ground.remove()
