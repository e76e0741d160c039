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
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fumehood.common.errors import SandboxUnavailable
from fumehood.common.outcome import Blame, Outcome, Status
from fumehood.worker.sandbox import cgroup, environment, protocol
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.poller import Poller
from fumehood.worker.sandbox.process import SandboxProcess, Surroundings
from fumehood.worker.sandbox.seat import Seat
from fumehood.worker.sandbox.verdict import KillReason
from fumehood.worker.sandbox.zygote_process import ZygoteConfig, ZygoteProcess

log = logging.getLogger("fumehood.sandbox")

_SPARE_MAX = 4  # sandboxes parked beyond the ones that run; more cost memory and gain nothing
_RETRY_FIRST, _RETRY_MAX = 0.05, 5.0  # seconds before a failed start is tried again
_FAILURES_MAX = 3  # starts that failed in a row before a waiting job is told
_STOP_MAX = 3.0  # seconds for the zygote to end everything


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
        self._zygotes: set[ZygoteProcess] = set()
        self._zygote: ZygoteProcess | None = None
        self._tasks: frozenset[str] = frozenset()
        self._tree: cgroup.Tree | None = None
        self._failures = 0
        self._retry: asyncio.TimerHandle | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._stopping = False

    # --- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Import the task modules and park the first sandboxes. Raises ``SandboxUnavailable``."""
        loop = asyncio.get_running_loop()
        self._lifeline, self._lifeline_ours = os.pipe2(os.O_CLOEXEC)
        self._poller = Poller(loop)
        buffer = bytearray(protocol.FRAME_MAX)
        self._around = Surroundings(loop, self._poller, buffer, self._on_end)
        self._tree = self._make_tree()
        self._zygote_config = ZygoteConfig(
            modules=self._config.modules,
            env=environment.allowed(self._config.environ, self._config.env),
            lifeline=self._lifeline,
            kill_all=None if self._tree is None else self._tree.kill_fd,
            start_timeout=self._config.start_timeout,
        )
        try:
            zygote = await self._new_zygote()
        except BaseException:
            await self.stop()
            raise
        self._adopt(zygote)

    def _make_tree(self) -> cgroup.Tree | None:
        if "cgroup" in self._config.disabled:
            return None
        try:
            return cgroup.make_tree()
        except OSError as exc:
            log.warning("no cgroup for sandboxes: descendants are found by subreaper and /proc", extra={"cause": exc})
            return None

    @property
    def tasks(self) -> frozenset[str]:
        """Names of the tasks that sandboxes can run."""
        return self._tasks

    @property
    def busy(self) -> int:
        """Sandboxes that run a job now."""
        return len(self._running)

    @property
    def zygote_pids(self) -> list[int]:
        """Process ids of the zygotes alive."""
        return [zygote.pid for zygote in self._zygotes]

    async def stop(self) -> None:
        """Kill what runs and leave no process behind. Idempotent; returns when all is gone."""
        if self._stopping:
            return
        self._stopping = True
        if self._retry is not None:
            self._retry.cancel()
        for task in self._starting:
            task.cancel()
        for sandbox in list(self._running):
            sandbox.kill(KillReason.SHUTDOWN)
        ended = [sandbox.outcome for sandbox in self._running if sandbox.outcome is not None]
        if ended:
            await asyncio.wait(ended, timeout=_STOP_MAX)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(SandboxUnavailable("the sandbox manager was stopped"))
        await self._end_zygotes()
        self._release()

    async def _end_zygotes(self) -> None:
        for zygote in self._zygotes:
            zygote.close()
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(loop.run_in_executor(None, zygote.reap, _STOP_MAX) for zygote in self._zygotes)
        )

    def _release(self) -> None:
        left = [*self._parked, *self._forking, *self._running]
        for sandbox in left:
            sandbox.on_zygote_lost()
        for seat in self._free_seats:
            seat.close()
        self._free_seats.clear()
        if self._tree is not None:
            self._tree.close()
        self._poller.close()
        os.close(self._lifeline)
        os.close(self._lifeline_ours)

    # --- jobs -------------------------------------------------------------------------------

    async def run(self, job: Job) -> Outcome:
        """Run one attempt. The outcome says all that went wrong, this node's own failures too."""
        if job.task not in self._tasks:
            return _unknown_task(job, self._tasks)
        try:
            sandbox = await self._take()
        except SandboxUnavailable as exc:
            return Outcome(
                Status.START_FAILED, job.job_id, job.task, Blame.INFRA, str(exc), stage="fork", attempt=job.attempt
            )
        self._running.add(sandbox)
        try:
            return await sandbox.start(job)
        except asyncio.CancelledError:
            sandbox.kill(KillReason.CANCELLED)
            raise

    def cancel(self, job_id: str) -> bool:
        """Kill the sandbox that runs this job. False when none does."""
        found = [sandbox for sandbox in self._running if sandbox.job and sandbox.job.job_id == job_id]
        for sandbox in found:
            sandbox.kill(KillReason.CANCELLED)
        return bool(found)

    def kill_all(self, reason: KillReason) -> None:
        """Begin to kill every job that runs; each still gets its outcome."""
        for sandbox in list(self._running):
            sandbox.kill(reason)

    async def _take(self) -> SandboxProcess:
        """A parked sandbox and a slot to run it in."""
        if self._stopping:
            raise SandboxUnavailable("the sandbox manager was stopped")
        if self._parked and not self._waiting and len(self._running) < self._config.slots:
            return self._parked.popleft()
        waiter: asyncio.Future[SandboxProcess] = self._around.loop.create_future()
        self._waiting.append(waiter)
        self._serve()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._running.discard(waiter.result())
                self._parked.appendleft(waiter.result())
                self._serve()
            raise

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
        while not self._stopping and self._retry is None and self._wanted > 0:
            if self._config.ctx == "spawn" and self._zygote is None:
                self._begin_zygote()
                return
            if self._zygote is None:
                return
            self._fork(self._zygote)
            if self._config.ctx == "spawn":
                self._zygote = None  # each sandbox has an interpreter of its own, used up by it

    def _fork(self, zygote: ZygoteProcess) -> None:
        sandbox = SandboxProcess(next(self._serials), self._seat(), self._around)
        self._forking.add(sandbox)
        sandbox.on_parked = self._on_parked
        zygote.fork(sandbox)

    def _seat(self) -> Seat:
        if self._free_seats:
            return self._free_seats.pop()
        leaf = None if self._tree is None else self._tree.leaf()
        return Seat(next(self._seat_numbers), leaf, self._lifeline)

    def _on_parked(self, sandbox: SandboxProcess) -> None:
        self._forking.discard(sandbox)
        self._parked.append(sandbox)
        self._serve()

    def _on_end(self, sandbox: SandboxProcess) -> None:
        """A sandbox has ended, and nothing of it is left: its seat is free."""
        if self._config.ctx == "spawn":
            self._let_go_of_idle_zygotes()
        ran = sandbox in self._running
        self._running.discard(sandbox)
        self._forking.discard(sandbox)
        if sandbox in self._parked:
            self._parked.remove(sandbox)
        if sandbox.quarantined:
            log.error("a sandbox could not be killed: its seat is not used again", extra={"pid": sandbox.pid})
            sandbox.seat.abandon()
        elif self._stopping:
            sandbox.seat.close()
        else:
            self._free_seats.append(sandbox.seat)
        if ran and sandbox.was_ready:
            self._failures = 0
        elif not self._stopping:
            self._on_failed_start(sandbox.describe_failure())
        if not self._stopping:
            self._serve()

    # --- failures ---------------------------------------------------------------------------

    def _on_failed_start(self, why: str) -> None:
        """Back off, and tell a waiting job when it keeps failing."""
        self._failures += 1
        log.warning("a sandbox could not be started", extra={"cause": why, "failures": self._failures})
        if self._failures >= _FAILURES_MAX:
            while self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_exception(SandboxUnavailable(why))
        if self._retry is None:
            delay = min(_RETRY_MAX, _RETRY_FIRST * 2 ** min(self._failures, 10))
            self._retry = self._around.loop.call_later(delay, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self._zygote is None and self._config.ctx != "spawn":
            self._begin_zygote()
        self._refill()

    # --- zygotes ----------------------------------------------------------------------------

    async def _new_zygote(self) -> ZygoteProcess:
        zygote = ZygoteProcess(self._zygote_config, self._poller, self._on_zygote_lost)
        self._zygotes.add(zygote)
        try:
            await zygote.ready(self._config.start_timeout)
        except BaseException:
            zygote.close(kill=True)
            raise
        for warning in zygote.warnings:
            log.warning(warning)
        return zygote

    def _adopt(self, zygote: ZygoteProcess) -> None:
        self._zygote = zygote
        self._tasks = zygote.tasks
        self._refill()

    def _begin_zygote(self) -> None:
        if self._starting or self._stopping:
            return
        task = self._around.loop.create_task(self._replace_zygote())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _replace_zygote(self) -> None:
        try:
            zygote = await self._new_zygote()
        except SandboxUnavailable as exc:
            self._starting.clear()
            self._on_failed_start(str(exc))
        else:
            self._starting.clear()
            self._adopt(zygote)

    def _let_go_of_idle_zygotes(self) -> None:
        for zygote in [z for z in self._zygotes if not z.sandboxes and z is not self._zygote]:
            if zygote.greeted:
                self._zygotes.discard(zygote)
                zygote.close()
                self._around.loop.run_in_executor(None, zygote.reap, _STOP_MAX)

    def _on_zygote_lost(self, zygote: ZygoteProcess) -> None:
        self._zygotes.discard(zygote)
        self._around.loop.run_in_executor(None, zygote.reap, _STOP_MAX)
        if self._stopping or zygote is not self._zygote:
            return
        log.error("the zygote is gone: a new one is started", extra={"pid": zygote.pid})
        self._zygote = None
        self._begin_zygote()


def _unknown_task(job: Job, known: frozenset[str]) -> Outcome:
    reason = f"no task is named {job.task!r} here: this node knows {', '.join(sorted(known)) or 'none'}"
    return Outcome(
        Status.REJECTED, job.job_id, job.task, Blame.POLICY, reason[:2000], attempt=job.attempt
    )
