"""What a doctor asks the kernel, or the cgroups, about processes that are not its own."""

from __future__ import annotations

import contextlib
import signal

from fumehood.worker.sandbox.cgroup import Tree


def kills_surely(tree: Tree) -> bool:
    """Whether a leaf of this tree reaches even what forks as fast as it can."""
    with contextlib.suppress(OSError):
        leaf = tree.leaf()
        try:
            return leaf.kills_surely
        finally:
            leaf.close()
    return False


def leaves_reaping_to_the_kernel(pid: int) -> bool:
    """Whether a zygote ignores SIGCHLD: it does when the kernel tells how sandboxes end."""
    ignored = _status(pid, "SigIgn")
    return bool(ignored) and bool(int(ignored[0], 16) & 1 << (signal.SIGCHLD - 1))


def is_init(pid: int) -> bool:
    """Whether a process is the first of a PID namespace below this process's own."""
    numbers = _status(pid, "NSpid")
    return len(numbers) > 1 and numbers[-1] == "1"


def _status(pid: int, field: str) -> list[str]:
    """The words of a field of /proc/PID/status; none of a process that is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next(line.split()[1:] for line in file if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return []
