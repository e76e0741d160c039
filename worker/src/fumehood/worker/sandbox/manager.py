"""The sandbox manager: seats, parked sandboxes, and a job to each.

1. Start a zygote and keep as many sandboxes parked as jobs may come at once.
2. Give each job a parked sandbox at once, or wait for a free slot.
3. Clean the seat, park the next, and replace a zygote that is lost.
4. Stop: end what runs, and leave no process behind.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fumehood.common.outcome import Outcome
from fumehood.worker.sandbox import cgroup, environment, protocol
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.poller import Poller
from fumehood.worker.sandbox.process import SandboxProcess
from fumehood.worker.sandbox.refusal import NoSandbox, not_started, unknown_task
from fumehood.worker.sandbox.seat import Seat
from fumehood.worker.sandbox.surroundings import Surroundings
from fumehood.worker.sandbox.verdict import KillReason
from fumehood.worker.sandbox.zygote_keeper import Listener, ZygoteKeeper
from fumehood.worker.sandbox.zygote_process import ZygoteConfig, ZygoteProcess

log = logging.getLogger("fumehood.sandbox")

_SPARE_MAX = 4  # sandboxes parked beyond the ones that run; more cost memory and gain nothing
_RETRY_FIRST, _RETRY_MAX = 0.05, 5.0  # seconds before a failed start is tried again
_FAILURES_MAX = 3  # starts that failed in a row before a waiting job is told
_STOP_MAX, _STOP_STEP = 3.0, 0.002  # seconds for what was killed to be gone, and between looks


@dataclass(frozen=True, slots=True)
class ManagerConfig:
    """How a manager makes sandboxes."""

    modules: Sequence[str]
    slots: int = 1
    ctx: Literal["fork", "forkserver", "spawn"] = "fork"
    start_timeout: float = 30.0  # seconds
    env: Sequence[str] = ()  # more names of environment variables that tasks may see
    disabled: frozenset[str] = frozenset()  # mechanisms not to use, such as "cgroup"
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


class SandboxManager:
    """Runs jobs in sandboxes, ``slots`` at a time. Belongs to one event loop."""

    def __init__(self, config: ManagerConfig) -> None:
        self._config = config
        self._serials = itertools.count(1)
        self._seat_numbers = itertools.count(1)
        self._parked: deque[SandboxProcess] = deque()
        self._forking: set[SandboxProcess] = set()
        self._running: set[SandboxProcess] = set()
        self._waiting: deque[asyncio.Future[SandboxProcess]] = deque()
        self._free_seats: list[Seat] = []
        self._tasks: frozenset[str] = frozenset()
        self._untrusted: frozenset[str] = frozenset()
        self._tree: cgroup.Tree | None = None
        self._failures = 0  # sandboxes in a row that did not become ready
        self._losses = 0  # zygotes in a row that parked nothing
        self._retry: asyncio.TimerHandle | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._open = False

    # --- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Import the task modules and park the first sandboxes. Raises ``SandboxUnavailable``.

        After a start that failed, and after ``stop``, it can be started again.
        """
        if self._open:
            raise RuntimeError("this sandbox manager was started already")
        loop = asyncio.get_running_loop()
        self._lifeline, self._lifeline_ours = os.pipe2(os.O_CLOEXEC)
        self._poller = Poller(loop)
        buffer = bytearray(protocol.FRAME_MAX)
        self._around = Surroundings(loop, self._poller, buffer, self._on_end)
        self._failures = self._losses = 0
        self._keeper = ZygoteKeeper(self._zygote_config(), self._poller, self._listener())
        self._stopping, self._open = None, True
        try:
            self._tree = await asyncio.to_thread(self._make_tree)
            self._keeper.change(self._kill_all())
            await self._keeper.start()
        except BaseException:
            await self.stop()
            raise

    def _make_tree(self) -> cgroup.Tree | None:
        if "cgroup" in self._config.disabled:
            return None
        try:
            return cgroup.make_tree()
        except OSError as exc:
            log.warning(
                "no cgroup for sandboxes: descendants are found by subreaper and /proc",
                extra={"cause": exc},
            )
            return None

    def _zygote_config(self) -> ZygoteConfig:
        return ZygoteConfig(
            modules=self._config.modules,
            env=environment.allowed(self._config.environ, self._config.env),
            lifeline=self._lifeline,
            kill_all=None,
            start_timeout=self._config.start_timeout,
        )

    def _kill_all(self) -> int | None:
        return None if self._tree is None else self._tree.kill_fd

    def _listener(self) -> Listener:
        return Listener(self._on_zygote_ready, self._on_zygote_lost, self._on_zygote_failed)

    @property
    def tasks(self) -> frozenset[str]:
        """Names of the tasks that sandboxes can run."""
        return self._tasks

    @property
    def untrusted(self) -> frozenset[str]:
        """Names of those that are declared ``untrusted``."""
        return self._untrusted

    @property
    def busy(self) -> int:
        """Sandboxes that run a job now."""
        return len(self._running)

    @property
    def zygote_pids(self) -> list[int]:
        """Process ids of the zygotes alive."""
        return self._keeper.pids if self._open else []

    async def stop(self) -> None:
        """Kill what runs and leave no process behind. Idempotent; returns when all is gone."""
        if not self._open:
            return
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        await asyncio.shield(self._stopping)  # nobody's haste may leave processes behind

    async def _stop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._tell_waiting(NoSandbox("the sandbox manager was stopped", "stopped"))
        self.kill_all(KillReason.SHUTDOWN)
        await _until(lambda: not self._running)
        os.close(self._lifeline_ours)  # the end of all that hold on to the other one
        await self._keeper.stop()
        for sandbox in [*self._parked, *self._forking, *self._running]:
            sandbox.on_zygote_lost()
        if self._tree is not None:
            await _until(self._tree.end)
        self._release()

    def _release(self) -> None:
        for seat in self._free_seats:
            seat.close()
        self._free_seats.clear()
        if self._tree is not None:
            self._tree.close()
            self._tree = None
        self._poller.close()
        os.close(self._lifeline)
        self._open = False

    def disown(self) -> None:
        """In a fork of this process: let go of what would keep sandboxes alive after the parent."""
        if self._open:
            os.close(self._lifeline_ours)
            self._keeper.disown()

    # --- jobs -------------------------------------------------------------------------------

    async def run(self, job: Job) -> Outcome:
        """Run one attempt. The outcome says all that went wrong, this node's own failures too."""
        if job.task not in self._tasks:
            return unknown_task(job, self._tasks)
        try:
            sandbox = await self._take()
            while sandbox.ended:  # between being given and being used
                sandbox = await self._take()
        except NoSandbox as exc:
            return not_started(job, exc)
        self._running.add(sandbox)
        try:
            return await sandbox.start(job)
        except asyncio.CancelledError:
            sandbox.kill(KillReason.CANCELLED)
            raise

    def cancel(self, job_id: str) -> bool:
        """Kill the sandbox that runs this job. False when none does."""
        found = [
            sandbox for sandbox in self._running if sandbox.job and sandbox.job.job_id == job_id
        ]
        for sandbox in found:
            sandbox.kill(KillReason.CANCELLED)
        return bool(found)

    def kill_all(self, reason: KillReason) -> None:
        """Begin to kill every job that runs; each still gets its outcome."""
        for sandbox in list(self._running):
            sandbox.kill(reason)

    async def _take(self) -> SandboxProcess:
        """A parked sandbox and a slot to run it in."""
        if self._stopping is not None or not self._open:
            raise NoSandbox("the sandbox manager was stopped", "stopped")
        if self._parked and not self._waiting and len(self._running) < self._config.slots:
            return self._parked.popleft()
        waiter: asyncio.Future[SandboxProcess] = self._around.loop.create_future()
        self._waiting.append(waiter)
        self._serve()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._take_back(waiter.result())
            raise

    def _take_back(self, sandbox: SandboxProcess) -> None:
        self._running.discard(sandbox)
        if not sandbox.ended:
            self._parked.appendleft(sandbox)
        self._serve()

    def _serve(self) -> None:
        """Give parked sandboxes to waiting jobs, as far as slots go; then park more."""
        while self._waiting and self._parked and len(self._running) < self._config.slots:
            waiter = self._waiting.popleft()
            if not waiter.done():
                sandbox = self._parked.popleft()
                self._running.add(sandbox)
                waiter.set_result(sandbox)
        self._refill()

    # --- sandboxes --------------------------------------------------------------------------

    @property
    def _wanted(self) -> int:
        spare = min(self._config.slots, _SPARE_MAX)
        room = self._config.slots - len(self._running)
        return min(spare, max(room, 1)) - len(self._parked) - len(self._forking)

    def _refill(self) -> None:
        spawn = self._config.ctx == "spawn"
        while self._stopping is None and self._retry is None and self._wanted > 0:
            zygote = self._keeper.current
            if zygote is None:
                if spawn:
                    self._keeper.begin()
                return
            self._fork(zygote)
            if spawn:
                self._keeper.use_up()  # each sandbox has an interpreter of its own

    def _fork(self, zygote: ZygoteProcess) -> None:
        try:
            seat = self._seat()
        except OSError as exc:
            self._on_failed_start(f"no cgroup can be made: {exc}", "cgroup")
            return
        try:
            sandbox = SandboxProcess(next(self._serials), seat, self._around)
        except OSError as exc:
            self._free_seats.append(seat)
            self._on_failed_start(f"no channels can be made: {exc}", "channels")
            return
        self._forking.add(sandbox)
        sandbox.on_parked = self._on_parked
        zygote.fork(sandbox)

    def _seat(self) -> Seat:
        if self._free_seats:
            return self._free_seats.pop()
        try:
            leaf = None if self._tree is None else self._tree.leaf()
        except FileNotFoundError:
            self._renew_tree()
            raise
        return Seat(next(self._seat_numbers), leaf, self._lifeline)

    def _renew_tree(self) -> None:
        """Somebody has removed the cgroup: start over with another, if there can be one."""
        if self._tree is not None:
            self._tree.close()
        self._tree = self._make_tree()
        self._keeper.change(self._kill_all())

    def _on_parked(self, sandbox: SandboxProcess) -> None:
        self._losses = 0
        self._forking.discard(sandbox)
        self._parked.append(sandbox)
        self._serve()

    def _on_end(self, sandbox: SandboxProcess) -> None:
        """A sandbox has ended, and nothing of it is left: its seat is free."""
        if self._config.ctx == "spawn":
            self._keeper.let_go_of_idle()
        ran = sandbox in self._running
        self._running.discard(sandbox)
        self._forking.discard(sandbox)
        if sandbox in self._parked:
            self._parked.remove(sandbox)
        self._clear_seat(sandbox)
        if ran and sandbox.was_ready:
            self._failures = 0
        elif self._stopping is None and not sandbox.orphaned:
            self._on_failed_start(sandbox.describe_failure(), sandbox.failed_stage)
        if self._stopping is None:
            self._serve()

    def _clear_seat(self, sandbox: SandboxProcess) -> None:
        if sandbox.quarantined:
            log.error(
                "a sandbox could not be killed: its seat is not used again",
                extra={"pid": sandbox.pid},
            )
            sandbox.seat.abandon()
        elif self._stopping is not None or sandbox.failed_stage == "cgroup":
            sandbox.seat.close()
        else:
            self._free_seats.append(sandbox.seat)

    # --- failures ---------------------------------------------------------------------------

    def _on_failed_start(self, why: str, stage: str) -> None:
        self._failures += 1
        self._back_off(why, stage)

    def _on_zygote_failed(self, why: str) -> None:
        self._on_failed_start(why, "zygote")

    def _on_zygote_lost(self) -> None:
        self._losses += 1
        self._back_off("the zygote was lost again and again", "zygote")

    def _back_off(self, why: str, stage: str) -> None:
        """Try again later, and tell the waiting jobs when it keeps failing."""
        failures = self._failures + self._losses
        log.warning("a sandbox could not be started", extra={"cause": why, "failures": failures})
        if failures >= _FAILURES_MAX:
            self._tell_waiting(NoSandbox(why, stage))
        if self._retry is None:
            delay = min(_RETRY_MAX, _RETRY_FIRST * 2 ** min(failures, 10))
            self._retry = self._around.loop.call_later(delay, self._try_again)

    def _tell_waiting(self, exc: NoSandbox) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(exc)

    def _try_again(self) -> None:
        self._retry = None
        if self._keeper.current is None:
            self._keeper.begin()
        self._refill()

    def _on_zygote_ready(self, zygote: ZygoteProcess) -> None:
        self._tasks, self._untrusted = zygote.tasks, zygote.untrusted
        self._refill()


async def _until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, for so long as processes take to die."""
    end = time.monotonic() + _STOP_MAX
    while not condition() and time.monotonic() < end:  # noqa: ASYNC110 - the kernel sets no events
        await asyncio.sleep(_STOP_STEP)
