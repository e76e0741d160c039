"""What is known of a manager in peace, and has to be so again after every case: I2 to I4, I7."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from support.sandboxes import count_fds

from fumehood.worker.sandbox.manager import SandboxManager
from hostile import inside, watch
from hostile.outside import MARK, Outside, residue, sweep

_SETTLE = 2.0  # seconds for what has ended to be gone, and the next sandboxes to be parked
_OF_NO_SEAT = ("chance", "cgroup", "user")  # what differs from canary to canary, or seat to seat


class Peace:
    """A manager as it was before the first case; ``learn`` it once canaries were everywhere."""

    def __init__(self, manager: SandboxManager) -> None:
        self._manager = manager
        self._usual: dict[int, dict[str, Any]] = {}  # what a canary saw, by seat
        self._chance: set[str] = set()
        self._zygotes: set[int] = set()
        self._fds: dict[int, Counter[str]] = {}
        self._seats = self._ours = 0
        self._background: set[int] = set()

    def forget(self) -> None:
        """A new zygote: its canaries are to be seen anew."""
        self._usual.clear()

    def learn(self) -> None:
        """Take what is there now for what has to be there."""
        self.settle()
        self._zygotes = set(self._manager.zygote_pids)
        self._fds = {pid: watch.descriptors_at_rest(pid) for pid in self._zygotes}
        self._seats = inside.seat_descriptors(self._manager)
        self._ours = count_fds()
        self._background = set(watch.marked(MARK)) - inside.pids(self._manager)

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
        if wait_while(lambda: count_fds() > self._ours + 2):
            found.append(f"I2: {count_fds()} descriptors in the manager, {self._ours} before")
            self._ours = count_fds()
        if outside.decoy.poll() is not None:
            found.append("I3: a process outside was killed")
            outside.start_decoy()
        sweep()
        return found

    def _of_zygotes(self) -> list[str]:
        found: list[str] = []
        for pid in self._zygotes:
            try:
                if threads := watch.threads_of(pid) - 1:
                    found.append(f"I2: the zygote has {threads} more threads")
                if wait_while(partial(self._fds_beyond, pid)):
                    have = watch.descriptors_of(pid)
                    more, less = have - self._fds[pid], self._fds[pid] - have
                    found.append(f"I2: the zygote has more open: {more}, and less: {less}")
                    self._fds[pid], self._seats = have, inside.seat_descriptors(self._manager)
            except OSError as exc:
                found.append(f"I2: the zygote is gone: {exc}")
        return found

    def _fds_beyond(self, pid: int) -> int:
        """How many descriptors the zygote has more than before, those of new seats left out."""
        new = inside.seat_descriptors(self._manager) - self._seats
        return watch.descriptors_of(pid).total() - self._fds[pid].total() - new

    def _strays(self) -> dict[int, str]:
        left: dict[int, str] = {}
        manager = self._manager

        def look() -> bool:
            known = self._background | inside.pids(manager) | set(manager.zygote_pids)
            left.clear()
            left.update({p: name for p, name in watch.marked(MARK).items() if p not in known})
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
