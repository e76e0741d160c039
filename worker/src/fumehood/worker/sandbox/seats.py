"""The seats of one manager, and the cgroups and user ids that they have."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os

from fumehood.worker.sandbox import cgroup, slotuid
from fumehood.worker.sandbox.seat import Seat

log = logging.getLogger("fumehood.sandbox")

_NUMBERS_PER_SLOT, _NUMBERS_LEAST = 4, 32  # user ids for seats; a quarantined one keeps its own


class Seats:
    """Makes seats, keeps the free ones, and cleans them between two jobs."""

    def __init__(
        self, disabled: frozenset[str], lifeline: int, slots: int, *, own_ids: bool
    ) -> None:
        self._disabled = disabled
        self._lifeline = lifeline
        self._free: list[Seat] = []
        self._numbers = itertools.count(1)
        self._most = min(slotuid.BLOCK - 1, _NUMBERS_LEAST + _NUMBERS_PER_SLOT * slots)
        #: A block of user ids, where each seat has its own.
        self.ids = slotuid.claim(self._most) if own_ids and os.geteuid() == 0 else None
        self._cleaning: set[asyncio.Future[bool]] = set()
        self._closed = False
        self.tree: cgroup.Tree | None = None
        #: Why the cgroups cannot do all that they are wanted for; as ``Tree.missing``.
        self.missing: dict[str, str] = {}

    def make_tree(self) -> None:
        """Have a cgroup for the seats, if this host lets this process have one. Blocks."""
        try:
            self.tree = cgroup.make_tree(self._disabled & cgroup.MASKS)
            self.missing = self.tree.missing
        except OSError as exc:
            self.tree = None
            self.missing = getattr(exc, "missing", {})
            log.warning(
                "no cgroup for sandboxes: descendants are found by subreaper and /proc",
                extra={"cause": exc},
            )

    def renew_tree(self) -> None:
        """Somebody has removed the cgroup: start over with another, if there can be one."""
        if self.tree is not None:
            self.tree.close()
        self.make_tree()

    @property
    def kill_fd(self) -> int | None:
        """What kills all that is in any seat by one write."""
        return None if self.tree is None else self.tree.kill_fd

    def take(self) -> Seat:
        """A clean seat. Raises ``OSError``; ``FileNotFoundError`` when its cgroup is gone."""
        if self._free:
            return self._free.pop()
        number = next(self._numbers)
        if self.ids is not None and number > self._most:
            raise OSError(errno.EAGAIN, "all user ids for sandboxes are taken by stuck ones")
        leaf = None if self.tree is None else self.tree.leaf()
        return Seat(number, leaf, self._lifeline)

    def put_back(self, seat: Seat) -> None:
        """Its sandbox is gone with all that it started."""
        if seat.leaf is None or seat.leaf.is_clean():
            self._free.append(seat)
            return
        # What the last job left would count against the next; to give it back takes a while.
        cleaning = asyncio.get_running_loop().run_in_executor(None, seat.leaf.clean)
        self._cleaning.add(cleaning)
        cleaning.add_done_callback(lambda done: self._on_cleaned(seat, done))

    def _on_cleaned(self, seat: Seat, done: asyncio.Future[bool]) -> None:
        self._cleaning.discard(done)
        if self._closed or done.cancelled() or done.exception() is not None or not done.result():
            seat.close()
        else:
            self._free.append(seat)

    def drop(self, seat: Seat) -> None:
        """Give a seat up."""
        seat.close()

    def end(self) -> bool:
        """Kill what is left in any seat. False while something is."""
        return self.tree is None or self.tree.end()

    async def cleaned(self) -> None:
        """Wait until no seat is being cleaned; each is given up from here on."""
        self._closed = True
        if self._cleaning:
            await asyncio.wait(self._cleaning)

    def close(self) -> None:
        """Give everything up."""
        for seat in self._free:
            seat.close()
        self._free.clear()
        if self.tree is not None:
            self.tree.close()
            self.tree = None
        if self.ids is not None:
            self.ids.close()
            self.ids = None
