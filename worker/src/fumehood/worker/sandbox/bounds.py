"""What holds one attempt to its limits: the kernel where it can, and a look now and then.

Limits on a process are set from outside, by ``prlimit``, just before it gets its job: the sandbox
spends nothing on them, and its zygote loads no library for them.
"""

from __future__ import annotations

import math
import os
import resource
from errno import ESRCH
from typing import TYPE_CHECKING

from fumehood.common.limits import Limits
from fumehood.common.task import Profile
from fumehood.worker.sandbox import memory_watch
from fumehood.worker.sandbox.killer import descendants_of
from fumehood.worker.sandbox.verdict import KillReason, Spent

if TYPE_CHECKING:
    from fumehood.worker.sandbox.cgroup import Leaf

_LOOK_LEAST, _LOOK_MOST = 0.01, 1.0  # seconds between two looks at CPU time
_LOOK_MEMORY = 0.05  # seconds; how long a job without memory cgroup can be above its limit
Rlimit = tuple[int, int, int]  # which, soft, hard
_PAGE = os.sysconf("SC_PAGESIZE")
_CORES = os.cpu_count() or 1


class Bounds:
    """The limits of one running attempt. ``hold`` them, ``look`` when told to, then ``spent``."""

    def __init__(
        self, limits: Limits, leaf: Leaf | None, *, profile: Profile, own_uid: bool
    ) -> None:
        self._limits = limits
        self._leaf = leaf
        self._own_uid = own_uid  # whether no other job has the sandbox's uid
        has_limits = limits.memory is not None or limits.processes is not None
        several = leaf is not None and len(leaf.procs_fds) > 1
        #: Whether the sandbox is to join more cgroups than the one it is in. Version 1 has one for
        #: each kind of limit, and a trusted job without such limits is spared them.
        self.joins = several and profile == "trusted" and has_limits
        self._joined = not several or profile == "untrusted" or has_limits
        self._pid = 0
        self._resident = 0  # bytes, the most that a look has seen
        self._shared = 0  # bytes that the sandbox had of its zygote when it began

    @property
    def _counts_memory(self) -> bool:
        return self._joined and self._leaf is not None and self._leaf.memory is not None

    @property
    def _looks_at_memory(self) -> bool:
        return self._limits.memory is not None and not self._counts_memory

    def hold(self, pid: int) -> list[Rlimit]:
        """Have the kernel enforce them on process ``pid``; what it has to set itself, as setrlimit.

        That is what may be set of a process of another user by the right to do so alone. Raises
        ``OSError``.
        """
        if pid <= 0:
            raise ProcessLookupError(ESRCH, "it has ended")
        self._pid = pid
        if self._leaf is not None:
            if self._joined:
                self._leaf.limit(self._limits.memory, self._limits.processes)
            self._leaf.begin(all_of_it=self._joined)
        if self._looks_at_memory:
            self._shared = memory_watch.resident([pid])
        left: list[Rlimit] = []
        for each in self._rlimits(pid):
            try:
                resource.prlimit(pid, each[0], each[1:])
            except PermissionError:
                left.append(each)
        return left

    def _rlimits(self, pid: int) -> list[Rlimit]:
        limits, found = self._limits, list[Rlimit]()
        if limits.cpu is not None:
            # One more second until the SIGKILL, for a task that ignores SIGXCPU.
            seconds = math.ceil(limits.cpu)
            found.append((resource.RLIMIT_CPU, seconds, seconds + 1))
        if limits.file_size is not None:
            found.append((resource.RLIMIT_FSIZE, limits.file_size, limits.file_size))
        if limits.open_files is not None:
            found.append((resource.RLIMIT_NOFILE, limits.open_files, limits.open_files))
        if limits.memory is not None and not self._counts_memory:
            size = _address_space(pid) + limits.memory
            found.append((resource.RLIMIT_AS, size, size))
        if limits.processes is not None and (self._leaf is None or self._leaf.processes is None):
            count = limits.processes + (0 if self._own_uid else _threads_of_user(pid))
            found.append((resource.RLIMIT_NPROC, count, count))
        return found

    # --- looking ----------------------------------------------------------------------------

    def next_look(self) -> float | None:
        """Seconds until the next ``look`` is due; None when the kernel needs no help."""
        if self._looks_at_memory:
            return _LOOK_MEMORY
        if self._limits.cpu is None or self._leaf is None:
            return None
        left = self._limits.cpu - self._tree_cpu()
        return min(_LOOK_MOST, max(_LOOK_LEAST, left / _CORES))

    def look(self) -> KillReason | None:
        """Why the attempt is to be killed, if it is above a limit that the kernel does not hold."""
        limits = self._limits
        if limits.cpu is not None and self._tree_cpu() >= limits.cpu:
            return KillReason.CPU
        if limits.memory is not None and self._looks_at_memory:
            pids = {self._pid, *descendants_of(self._pid)}
            held = memory_watch.at_most(pids) - self._shared
            if held > limits.memory:  # only then is it worth a look that takes longer
                held = memory_watch.resident(pids) - self._shared
            self._resident = max(self._resident, held)
            if held > limits.memory:
                return KillReason.MEMORY
        return None

    def _tree_cpu(self) -> float:
        return 0.0 if self._leaf is None else self._leaf.cpu() or 0.0

    @property
    def oom_watch(self) -> tuple[int, int] | None:
        """Descriptor and events that tell of memory run out, where there is such a descriptor."""
        if self._leaf is None or self._limits.memory is None or self._leaf.oom_fd < 0:
            return None
        return self._leaf.oom_fd, self._leaf.oom_events

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed a process of it for memory."""
        return self._leaf is not None and self._leaf.oom_killed()

    def spent(self) -> Spent:
        """What it has used; for when it has ended, or is about to."""
        if self._leaf is None:
            above = self._limits.memory is not None and self._resident > self._limits.memory
            return Spent(memory=self._resident or None, out_of_memory=above)
        if not self._joined:
            return Spent(cpu=self._leaf.cpu(), memory=self._resident or None)
        seen = self._leaf.seen()
        memory = seen.peak_memory if self._counts_memory else self._resident or None
        killed = seen.oom_kills > 0
        return Spent(
            cpu=seen.cpu,
            memory=memory,
            out_of_memory=killed and seen.at_memory_limit,
            host_out_of_memory=killed and not seen.at_memory_limit,
            process_limit_hits=seen.process_limit_hits,
        )


def _address_space(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[0]) * _PAGE


def _threads_of_user(pid: int) -> int:
    """Threads of the user of process ``pid``: what RLIMIT_NPROC counts, whoever started them."""
    uid = os.stat(f"/proc/{pid}").st_uid
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == uid:
                    count += len(os.listdir(f"/proc/{entry.name}/task"))
            except OSError:  # it has ended
                continue
    return count
