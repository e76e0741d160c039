"""Ids for slots: a block of user and group ids for each node, that no account of the host has.

Two nodes on one host must not share an id: limits that the kernel counts by user would be shared
too. A node therefore holds a lock on its block for as long as it lives.
"""

from __future__ import annotations

import errno
from _socket import AF_UNIX, SOCK_DGRAM, socket

from fumehood.worker.sandbox.confinement import NamespaceError

#: Ids that systemd's table leaves unused (https://systemd.io/UIDS-GIDS/: 1879048192 to 2147352575).
START = 0x71000000
#: The same in a container that has but the usual 65536 ids: between accounts and dynamic users.
START_SMALL = 20000
BLOCK = 2048  # ids of one node; settings allow 1024 slots at most
_BLOCKS, _BLOCKS_SMALL = 1024, 16


class Block:
    """``base`` is what root in a user namespace is; slot k, from 1 to ``slots``, is ``base`` + k.

    Keep it as long as sandboxes may use its ids.
    """

    __slots__ = ("_lock", "base", "slots")

    def __init__(self, base: int, slots: int, lock: socket) -> None:
        self.base, self.slots, self._lock = base, slots, lock

    def close(self) -> None:
        """Give the ids up."""
        self._lock.close()


def claim(slots: int) -> Block:
    """A block that no other node in this network namespace has. Raises ``NamespaceError``."""
    if not 0 < slots < BLOCK:
        raise NamespaceError("uids", errno.EINVAL, f"{slots} slots: 1 to {BLOCK - 1} can be served")
    start, blocks = (START, _BLOCKS) if is_mapped(START, BLOCK) else (START_SMALL, _BLOCKS_SMALL)
    for base in range(start, start + blocks * BLOCK, BLOCK):
        if not is_mapped(base, BLOCK):
            continue
        lock = socket(AF_UNIX, SOCK_DGRAM)
        try:
            # An abstract name: nothing on disk that would outlive a node that is killed.
            lock.bind(f"\0fumehood-uids-{base}")
        except OSError:
            lock.close()
            continue
        return Block(base, slots, lock)
    raise NamespaceError("uids", errno.EAGAIN, "no block of unused user ids is left on this host")


def is_mapped(base: int, count: int) -> bool:
    """Whether this process's user namespace has all those ids, as users and as groups."""
    return all(_holds(f"/proc/self/{kind}_map", base, count) for kind in ("uid", "gid"))


def _holds(path: str, base: int, count: int) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except OSError:  # no user namespaces in this kernel: all ids are there
        return True
    return any(first <= base and base + count <= first + size for first, _, size in ranges)
