"""Killing everything that a sandbox started, where no cgroup holds it.

A sandbox is then a child subreaper, so that its orphans stay below it while it lives, and the
zygote is one too, so that they come to the zygote when it is gone. Below a process that cannot
fork any more (it is stopped), the tree only shrinks: stop, look again, until nothing new is found.
"""

from __future__ import annotations

import os
from time import monotonic

from fumehood.worker.sandbox.signals import SIGKILL, SIGSTOP

_TREE_MAX = 0.2  # seconds; the same, for one that takes long to look through
_ROUNDS = 50  # a tree that grows faster than it can be stopped this often is killed as it stands


def children_of(pid: int) -> set[int]:
    """The process ids of the children of ``pid``; empty when it is gone."""
    found: set[int] = set()
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.update(map(int, file.read().split()))
        except OSError:
            pass
    return found


def descendants_of(pid: int) -> set[int]:
    """All process ids below ``pid`` at this moment."""
    found: set[int] = set()
    edge = {pid}
    while edge:
        below = {child for each in edge for child in children_of(each)} - found
        found |= below
        edge = below
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process and it is no zombie, which only waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False


def kill_tree(pid: int) -> int:
    """Kill ``pid`` and all that is below it; the number of living processes found below it."""
    _signal(pid, SIGSTOP)
    stopped: set[int] = set()
    count = 0
    end = monotonic() + _TREE_MAX
    for _ in range(_ROUNDS):
        new = descendants_of(pid) - stopped
        if not new or monotonic() > end:
            break
        for each in new:
            _signal(each, SIGSTOP)
            count += is_alive(each)
        stopped |= new
    for each in (*stopped, pid):
        _signal(each, SIGKILL)
    return count


def kill_strays(known: set[int]) -> int:
    """Kill and reap the children of this process that are not ``known``; how many lived.

    For a subreaper whose own children are all known: whatever else is below it was orphaned by a
    sandbox that is gone.
    """
    count = 0
    for _ in range(_ROUNDS):
        strays = children_of(os.getpid()) - known
        if not strays:
            break
        for pid in strays:
            count += _lives(pid) + kill_tree(pid)
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass
    return count


def _lives(child: int) -> bool:
    """``is_alive`` for a child of this process, which /proc may hide where it shows no others."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
