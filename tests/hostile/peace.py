"""What is known of a manager in peace, and has to be so again after every case: I2 to I4, I7."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from support.sandboxes import count_fds, descendants

from fumehood.worker.sandbox.manager import SandboxManager
from hostile import inside, watch
from hostile.outside import MARK, Outside, residue, sweep

_SETTLE = 2.0  # seconds for what has ended to be gone, and the next sandboxes to be parked
_FDS_OF_A_SEAT = 16  # at most: 14 with a cgroup of v1 in several hierarchies
_FDS_OF_A_BOX = 6  # at most: its socket, its pipes, its process
_FDS_OF_LUCK = 3  # what may be on its way to be closed, or belong to the loop
_OF_NO_SEAT = ("chance", "cgroup", "user")  # what differs from canary to canary, or seat to seat


class Peace:
    """A manager as it was before the first case; ``learn`` it once canaries were everywhere."""

    def __init__(self, manager: SandboxManager) -> None:
        self._manager = manager
        self._usual: dict[int, dict[str, Any]] = {}  # what a canary saw, by seat
        self._chance: set[str] = set()
        self._zygotes: set[int] = set()
        self._keepers: set[int] = set()  # zygotes, and what is above them in their namespaces
        self._fds: Counter[str] = Counter()
        self._known_seats = self._seats = self._boxes = self._ours = 0

    def forget(self) -> None:
        """A new zygote: its canaries are to be seen anew."""
        self._usual.clear()

    def learn(self) -> None:
        """Take what is there now for what has to be there."""
        self.settle()
        self._zygotes = set(self._manager.zygote_pids)
        self._keepers = self._around() - inside.pids(self._manager) | self._zygotes
        self._fds = watch.await_rest(self._descriptors)
        self._known_seats = inside.seat_descriptors(self._manager)
        self._count()

    def settle(self) -> None:
        """Wait until the next sandboxes are parked, and nothing else goes on."""
        wait_while(lambda: not inside.in_peace(self._manager), _SETTLE)

    def is_new(self) -> bool:
        """Whether the zygotes are not those of before."""
        return set(self._manager.zygote_pids) != self._zygotes

    # --- complaints -------------------------------------------------------------------------

    def complaints(self, outside: Outside) -> list[str]:
        """I2 to I4: what is not as it was."""
        found = self._of_zygotes() if not self.is_new() else []
        strays = self._strays()
        found += [f"I3: processes are left: {strays}"] * bool(strays)
        found += [f"I4: residue: {each}" for each in residue()]
        found += self._of_manager()
        if outside.decoy.poll() is not None:
            found.append("I3: a process outside was killed")
            outside.start_decoy()
        sweep()
        return found

    def _of_zygotes(self) -> list[str]:
        try:
            threads = {pid: watch.threads_of(pid) for pid in self._keepers}
            found = [f"I2: threads of the zygote: {threads}"] * (set(threads.values()) != {1})
            if wait_while(lambda: self._fds_beyond() != 0):
                have = self._descriptors()
                more, less = have - self._fds, self._fds - have
                found.append(f"I2: the zygote has more open: {more}, and less: {less}")
                self._fds, self._known_seats = have, inside.seat_descriptors(self._manager)
        except OSError as exc:
            return [f"I2: the zygote is gone: {exc}"]
        return found

    def _around(self) -> set[int]:
        """Processes that come of the zygotes: by their first environment, or by their parents.

        In a user namespace nobody outside may read an environment; who is whose child is public.
        """
        below = (descendants(pid) for pid in self._manager.zygote_pids)
        return set(watch.marked(MARK)).union(*below)

    def _descriptors(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for pid in self._keepers:
            with contextlib.suppress(PermissionError):  # of another user namespace
                found += watch.descriptors_of(pid)
        return found

    def _fds_beyond(self) -> int:
        """How many descriptors the zygote has more than before, those of new seats left out."""
        new = inside.seat_descriptors(self._manager) - self._known_seats
        if self._fds.total() < self._known_seats:  # what has them may not be looked into
            new = 0
        return self._descriptors().total() - self._fds.total() - new

    def _of_manager(self) -> list[str]:
        def beyond() -> int:
            seats = max(0, inside.seat_count(self._manager) - self._seats)
            boxes = max(0, len(inside.pids(self._manager)) - self._boxes)
            return count_fds() - self._ours - seats * _FDS_OF_A_SEAT - boxes * _FDS_OF_A_BOX

        if not wait_while(lambda: beyond() > _FDS_OF_LUCK):
            return []
        before = self._ours, self._seats, self._boxes
        self._count()
        now = self._ours, self._seats, self._boxes
        return [f"I2: descriptors, seats and sandboxes in the manager: {now}, before {before}"]

    def _count(self) -> None:
        self._ours, self._seats = count_fds(), inside.seat_count(self._manager)
        self._boxes = len(inside.pids(self._manager))

    def _strays(self) -> dict[int, str]:
        left: dict[int, str] = {}
        manager = self._manager

        def look() -> bool:
            known = self._keepers | inside.pids(manager) | set(manager.zygote_pids)
            left.clear()
            left.update({pid: watch.name_of(pid) for pid in self._around() - known})
            for uid in {seen["user"][0][0] for seen in self._usual.values()}:
                if inside.own_uid(uid):
                    left.update(dict.fromkeys(watch.of_user(uid) - known, f"of user {uid}"))
            return bool(left)

        wait_while(look)
        return left

    # --- canaries ---------------------------------------------------------------------------

    def compare(self, seat: int | None, seen: dict[str, Any]) -> list[str]:
        """I7: how a canary differs from the first one in its seat."""
        repeated = self._chance & set(seen["chance"])
        self._chance.update(seen["chance"])
        found = [f"I7: chance repeats itself: {each}" for each in repeated]
        if seat is None:  # it was over before anybody could see where it sat
            return found
        usual = self._usual.setdefault(seat, seen)
        first = next(iter(self._usual.values()))
        for name, value in seen.items():
            if name != "chance" and value != usual[name]:
                found.append(f"I7: the canary sees {name} {value!r}, before {usual[name]!r}")
            elif name not in _OF_NO_SEAT and value != first[name]:
                found.append(f"I7: seats differ in {name}: {value!r} and {first[name]!r}")
        return found

    @property
    def has_canaries(self) -> bool:
        """Whether any has come back yet."""
        return bool(self._usual)


def wait_while(condition: Callable[[], object], seconds: float = 1.0) -> bool:
    """Wait while it holds, at most so long; whether it still does."""
    end = time.monotonic() + seconds
    while condition():
        if time.monotonic() > end:
            return True
        time.sleep(0.002)
    return False
