"""Cgroups for sandboxes: one tree for a manager, one leaf in it for each seat.

What a tree can hold differs from host to host, and so it is tried out and said: ``Tree.holds``,
``Tree.missing``. Killing all that a sandbox starts needs no controller: where limits stay with v1,
or with nobody, a leaf of v2 still does that.
"""

from __future__ import annotations

import os
from pathlib import Path

from fumehood.worker.sandbox import cgroup_ground, cgroup_host, cgroup_probe, cgroup_sweep
from fumehood.worker.sandbox.cgroup_files import Processes
from fumehood.worker.sandbox.cgroup_ground import Driver, Ground
from fumehood.worker.sandbox.cgroup_host import Host
from fumehood.worker.sandbox.cgroup_leaf import Leaf, Seen
from fumehood.worker.sandbox.cgroup_v2 import KillFile

__all__ = ["MASKS", "Leaf", "NoCgroups", "Seen", "Tree", "make_tree"]

#: Mechanisms that can be left out, to test what is done without them or to work around a host.
MASKS = frozenset(
    {"cgroup", "cgroup-memory", "cgroup-pids", "cgroup-v1", "cgroup-v2", "cgroup.kill"}
)
_PURPOSES = frozenset({"kill", "memory", "processes", "cpu", "populated"})
# What to do without after a fault.
_MASK_OF = {
    "memory": "cgroup-memory",
    "processes": "cgroup-pids",
    "cpu": "cgroup-cpuacct",
    "kill": "cgroup-v2",
    "populated": "cgroup-v2",
}

_start_time = cgroup_sweep.start_time


class NoCgroups(OSError):
    """This host lets this process have no cgroup. ``missing`` says why, as ``Tree.missing``."""

    def __init__(self, missing: dict[str, str]) -> None:
        super().__init__("; ".join(dict.fromkeys(missing.values())))
        without = "a cgroup in which nothing can be killed is not used"
        self.missing = dict.fromkeys(sorted(_PURPOSES), without) | missing


class Tree:
    """The cgroup of one manager, with a leaf for each seat below it."""

    def __init__(self, ground: Ground, missing: dict[str, str]) -> None:
        self._ground = ground
        pids = ground.pids_path()
        self._processes = None if pids is None else Processes(pids)
        self._kill = ground.killer(self._processes)
        self._leaves = 0
        self.path = ground.paths[0]
        #: Of cgroup.kill, which kills all in it; None where it takes more than one write.
        self.kill_fd = self._kill.fd if isinstance(self._kill, KillFile) else None
        self.driver: Driver = ground.driver
        #: Why it does not hold "kill", "memory", "processes", "cpu" or "populated".
        self.missing = missing

    @property
    def holds(self) -> frozenset[str]:
        """What its leaves can do, of "kill", "memory", "processes", "cpu" and "populated"."""
        return _PURPOSES.difference(self.missing)

    @property
    def where(self) -> tuple[Path, ...]:
        """The cgroups that it was made in, one in each hierarchy."""
        return tuple(path.parent for path in self._ground.paths)

    def leaf(self) -> Leaf:
        """A new leaf. Raises ``OSError``."""
        self._leaves += 1
        return Leaf(self._ground.below(f"seat-{self._leaves}"))

    def end(self) -> bool:
        """Kill what is left in it. False while something is."""
        if not cgroup_sweep.is_populated(self.path):
            return True
        self._kill()
        return False

    def close(self) -> None:
        """Remove it and the leaves that are empty."""
        if self.kill_fd is not None:
            os.close(self.kill_fd)
            self.kill_fd = None
        if self._processes is not None:
            self._processes.close()
            self._processes = None
        self._ground.remove()


def make_tree(disabled: frozenset[str] = frozenset()) -> Tree:
    """The tree of this process, with what works here and is not ``disabled``, of ``MASKS``.

    Raises ``NoCgroups``, an ``OSError``, where this host lets it have none. It is tried out with a
    process of its own, once in the life of this one: some 30 ms.
    """
    if "cgroup" in disabled:
        raise NoCgroups(dict.fromkeys(_PURPOSES, "cgroups are disabled"))
    return _make_what_works(cgroup_host.read(), disabled, {})


def _make_what_works(host: Host, disabled: frozenset[str], faults: dict[str, str]) -> Tree:
    ground, missing = cgroup_ground.claim(host, disabled)
    missing |= faults
    if "kill" in missing or not ground.paths:
        ground.remove()
        raise NoCgroups(missing)
    tree = Tree(ground, missing)
    try:
        found = _try_out(tree)
    except BaseException:
        tree.close()
        raise
    if not found:
        return tree
    tree.close()
    masks = {_MASK_OF[purpose] for purpose in found}
    if masks <= disabled:
        raise NoCgroups(missing | found)
    return _make_what_works(host, disabled | masks, faults | found)


# By the cgroups above the tree and what it was to do there: what it could not do.
_tried: dict[tuple[object, ...], dict[str, str]] = {}


def _try_out(tree: Tree) -> dict[str, str]:
    key = (tree.where, tree.holds, tree.kill_fd is None)
    if key not in _tried:
        leaf = tree.leaf()
        try:
            _tried[key] = cgroup_probe.faults(leaf, tree.holds)
        finally:
            leaf.close()
    return _tried[key]
