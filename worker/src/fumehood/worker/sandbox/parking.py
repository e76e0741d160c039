"""Sandboxes from the request to fork them until a job takes them: parked ahead, and kept in number.

What fails to start is tried again after a pause that grows, and who waits is told when it goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fumehood.common.errors import SandboxUnavailable
from fumehood.worker.sandbox.manager_config import ManagerConfig
from fumehood.worker.sandbox.process import SandboxProcess
from fumehood.worker.sandbox.refusal import NoSandbox
from fumehood.worker.sandbox.renewal import Renewal
from fumehood.worker.sandbox.seats import Seats
from fumehood.worker.sandbox.surroundings import Surroundings
from fumehood.worker.sandbox.zygote_keeper import ZygoteKeeper
from fumehood.worker.sandbox.zygote_process import ZygoteProcess

log = logging.getLogger("fumehood.sandbox")

_RETRY_FIRST, _RETRY_MAX = 0.05, 5.0  # seconds before a failed start is tried again
_FAILURES_MAX = 3  # starts that failed in a row before a waiting job is told


@dataclass(frozen=True, slots=True)
class Lot:
    """What a parking needs: how, where, from whom; and who is told what."""

    config: ManagerConfig
    around: Surroundings
    seats: Seats
    keeper: ZygoteKeeper
    renewal: Renewal
    wanted: Callable[[], int]  # sandboxes that are to be parked, forking ones included
    on_parked: Callable[[], None]
    on_hopeless: Callable[[NoSandbox], None]
    on_tree_lost: Callable[[], None]  # somebody removed the cgroup of the seats


class Parking:
    """The sandboxes of one manager that have no job yet."""

    def __init__(self, lot: Lot) -> None:
        self._lot = lot
        self._spawns = lot.config.ctx == "spawn"
        self._serials = itertools.count(1)
        self._parked: deque[SandboxProcess] = deque()
        self._forking: set[SandboxProcess] = set()
        self._dismissed: set[SandboxProcess] = set()
        self._failures = 0  # sandboxes in a row that did not become ready
        self._losses = 0  # zygotes in a row that parked nothing
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._parked)

    def take(self) -> SandboxProcess:
        """The one that was parked first. Raises ``IndexError`` when there is none."""
        return self._parked.popleft()

    def put_back(self, sandbox: SandboxProcess) -> None:
        """Take one back that was not used after all."""
        if not sandbox.ended:
            self._parked.appendleft(sandbox)

    def refill(self) -> None:
        """Ask for as many as are wanted."""
        lot = self._lot
        while not self._closed and self._retry is None and self._is_short():
            zygote = lot.keeper.current
            if zygote is None:
                if self._spawns:
                    lot.keeper.begin()
                return
            self._fork(zygote, lot.config.tmp, self._on_parked)
            if self._spawns:
                lot.keeper.use_up()  # each sandbox has an interpreter of its own

    def _is_short(self) -> bool:
        return len(self._parked) + len(self._forking) < self._lot.wanted()

    async def fork_for(self, tmp: int) -> SandboxProcess:
        """One of its own kind, for a job with another limit. Raises ``NoSandbox``."""
        zygote = self._lot.keeper.current
        if zygote is None and self._spawns and not self._closed:
            zygote = await self._fresh_zygote()
        if zygote is None or self._closed:
            raise NoSandbox("there is no zygote at the moment", "zygote")
        made: asyncio.Future[SandboxProcess] = self._lot.around.loop.create_future()

        def on_parked(sandbox: SandboxProcess) -> None:
            self._forking.discard(sandbox)
            if made.cancelled():
                self.dismiss(sandbox)
            else:
                made.set_result(sandbox)

        sandbox = self._fork(zygote, tmp, on_parked)
        zygote.adopted = True
        if sandbox is None:
            raise NoSandbox("no sandbox with that tmp limit can be made", "fork")
        sandbox.on_never = lambda why: (
            None if made.done() else made.set_exception(NoSandbox(why, "fork"))
        )
        return await made

    async def _fresh_zygote(self) -> ZygoteProcess:
        try:
            return await self._lot.keeper.fresh()
        except SandboxUnavailable as exc:
            raise NoSandbox(str(exc), "zygote") from exc

    def _fork(
        self, zygote: ZygoteProcess, tmp: int, on_parked: Callable[[SandboxProcess], None]
    ) -> SandboxProcess | None:
        lot = self._lot
        try:
            seat = lot.seats.take()
        except OSError as exc:
            if isinstance(exc, FileNotFoundError):
                lot.on_tree_lost()
            self._on_failed_start(f"no cgroup can be made: {exc}", "cgroup")
            return None
        try:
            sandbox = SandboxProcess(next(self._serials), seat, lot.around, tmp)
        except OSError as exc:
            lot.seats.put_back(seat)
            self._on_failed_start(f"no channels can be made: {exc}", "channels")
            return None
        lot.renewal.count()
        self._forking.add(sandbox)
        sandbox.on_parked = on_parked
        zygote.fork(sandbox)
        return sandbox

    def _on_parked(self, sandbox: SandboxProcess) -> None:
        self._losses = 0
        self._forking.discard(sandbox)
        if self._is_of_old_code(sandbox):
            self.dismiss(sandbox)
            return
        self._parked.append(sandbox)
        self._lot.on_parked()

    # --- endings ----------------------------------------------------------------------------

    def dismiss(self, sandbox: SandboxProcess) -> None:
        """Let one end that nobody will use."""
        self._dismissed.add(sandbox)
        sandbox.dismiss()

    def dismiss_old(self) -> None:
        """Let those end that an earlier zygote has made, whose code may be another."""
        for sandbox in [each for each in self._parked if self._is_of_old_code(each)]:
            self._parked.remove(sandbox)
            self.dismiss(sandbox)

    def _is_of_old_code(self, sandbox: SandboxProcess) -> bool:
        current = self._lot.keeper.current
        return not self._spawns and current is not None and sandbox.zygote is not current

    def on_end(self, sandbox: SandboxProcess, *, ran: bool) -> None:
        """A sandbox has ended, and nothing of it is left: its seat is free."""
        self._forking.discard(sandbox)
        if sandbox in self._parked:
            self._parked.remove(sandbox)
        self._clear_seat(sandbox)
        if ran and sandbox.was_ready:
            self._failures = 0
        elif sandbox in self._dismissed:
            self._dismissed.discard(sandbox)
        elif not self._closed and not sandbox.ending.orphaned:
            self._on_failed_start(sandbox.describe_failure(), sandbox.failed_stage)
        if sandbox.on_never is not None:
            sandbox.on_never(sandbox.describe_failure())

    def _clear_seat(self, sandbox: SandboxProcess) -> None:
        if sandbox.ending.quarantined:
            log.error(
                "a sandbox could not be killed: its seat is not used again",
                extra={"pid": sandbox.ending.pid},
            )
            sandbox.seat.abandon()
        elif self._closed or sandbox.failed_stage == "cgroup":
            self._lot.seats.drop(sandbox.seat)
        else:
            self._lot.seats.put_back(sandbox.seat)

    def close(self) -> None:
        """Ask for no more, and try nothing again."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def abandoned(self) -> list[SandboxProcess]:
        """Those that never got a job."""
        return [*self._parked, *self._forking]

    # --- failures ---------------------------------------------------------------------------

    def on_zygote_failed(self, why: str) -> None:
        """A zygote could not be started."""
        self._on_failed_start(why, "zygote")

    def on_zygote_lost(self) -> None:
        """The current zygote is gone."""
        self._losses += 1
        self._back_off("the zygote was lost again and again", "zygote")

    def _on_failed_start(self, why: str, stage: str) -> None:
        self._failures += 1
        self._back_off(why, stage)

    def _back_off(self, why: str, stage: str) -> None:
        """Try again later, and tell the waiting jobs when it keeps failing."""
        failures = self._failures + self._losses
        log.warning("a sandbox could not be started", extra={"cause": why, "failures": failures})
        if failures >= _FAILURES_MAX:
            self._lot.on_hopeless(NoSandbox(why, stage))
        if self._retry is None and not self._closed:
            delay = min(_RETRY_MAX, _RETRY_FIRST * 2 ** min(failures, 10))
            self._retry = self._lot.around.loop.call_later(delay, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self._lot.keeper.current is None:
            self._lot.keeper.begin()
        self.refill()
