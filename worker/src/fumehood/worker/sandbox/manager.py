"""The sandbox manager: seats, parked sandboxes, and a job to each.

1. Start a zygote and keep as many sandboxes parked as jobs may come at once.
2. Give each job a parked sandbox at once, or wait for a free slot.
3. Clean the seat, park the next, and replace a zygote that is lost, worn out or of old code.
4. Stop: end what runs, and leave no process behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping

from fumehood.common.outcome import Outcome
from fumehood.worker.sandbox import protocol
from fumehood.worker.sandbox.confinement import Report
from fumehood.worker.sandbox.declared import Declared
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.manager_config import ManagerConfig
from fumehood.worker.sandbox.parking import Lot, Parking
from fumehood.worker.sandbox.poller import Poller
from fumehood.worker.sandbox.process import SandboxProcess
from fumehood.worker.sandbox.refusal import NoSandbox, not_started, unknown_task
from fumehood.worker.sandbox.renewal import Renewal
from fumehood.worker.sandbox.seats import Seats
from fumehood.worker.sandbox.surroundings import Surroundings
from fumehood.worker.sandbox.verdict import KillReason
from fumehood.worker.sandbox.zygote_keeper import Listener, ZygoteKeeper
from fumehood.worker.sandbox.zygote_process import ZygoteProcess

log = logging.getLogger("fumehood.sandbox")

_SPARE_MAX = 4  # sandboxes parked beyond the ones that run; more cost memory and gain nothing
_RENEWAL_LOOK = 1.0  # seconds between looks whether the zygote is to be replaced
_STOP_MAX, _STOP_STEP = 3.0, 0.002  # seconds for what was killed to be gone, and between looks


class SandboxManager:
    """Runs jobs in sandboxes, ``slots`` at a time. Belongs to one event loop."""

    def __init__(self, config: ManagerConfig) -> None:
        self._config = config
        self._running: set[SandboxProcess] = set()
        self._waiting: deque[asyncio.Future[SandboxProcess]] = deque()
        self._tasks: dict[str, Declared] = {}
        self._renewal = Renewal(config.lifetime)
        self._renewal_look: asyncio.TimerHandle | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._open = False

    # --- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Import the task modules and park the first sandboxes. Raises ``SandboxUnavailable``.

        After a start that failed, and after ``stop``, it can be started again.
        """
        if self._open:
            raise RuntimeError("this sandbox manager was started already")
        self._assemble(asyncio.get_running_loop())
        self._stopping, self._open = None, True
        try:
            await asyncio.to_thread(self._seats.make_tree)
            self._change_zygotes()
            await self._keeper.start()
            self._look_for_renewal()
        except BaseException:
            await self.stop()
            raise

    def _assemble(self, loop: asyncio.AbstractEventLoop) -> None:
        config = self._config
        own_ids = config.profile == "untrusted"
        self._lifeline, self._lifeline_ours = os.pipe2(os.O_CLOEXEC)
        self._poller = Poller(loop)
        self._seats = Seats(config.disabled, self._lifeline, config.slots, own_ids=own_ids)
        self._around = Surroundings(
            loop,
            self._poller,
            bytearray(protocol.FRAME_MAX),
            self._on_end,
            profile=config.profile,
            guarantees=config.guarantees,
            own_uids=self._seats.ids is not None,
        )
        listener = Listener(self._on_zygote_ready, self._on_zygote_lost, self._on_zygote_failed)
        first = config.for_zygote(self._seats, self._lifeline)
        self._keeper = ZygoteKeeper(first, self._poller, listener)
        self._parking = Parking(
            Lot(
                config,
                self._around,
                self._seats,
                self._keeper,
                self._renewal,
                wanted=self._wanted,
                on_parked=self._serve,
                on_hopeless=self._tell_waiting,
                on_tree_lost=self._renew_tree,
            )
        )

    def _change_zygotes(self) -> None:
        self._keeper.change(self._config.for_zygote(self._seats, self._lifeline))

    def _renew_tree(self) -> None:
        self._seats.renew_tree()
        self._change_zygotes()

    @property
    def tasks(self) -> Mapping[str, Declared]:
        """The tasks that sandboxes can run, by name."""
        return self._tasks

    @property
    def report(self) -> Report | None:
        """Which namespaces the current zygote has; None for a trusted one."""
        zygote = self._keeper.current if self._open else None
        return None if zygote is None else zygote.report

    @property
    def seats(self) -> Seats:
        """What sandboxes sit in; for a doctor."""
        return self._seats

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
        self._parking.close()
        if self._renewal_look is not None:
            self._renewal_look.cancel()
            self._renewal_look = None
        self._tell_waiting(NoSandbox("the sandbox manager was stopped", "stopped"))
        self.kill_all(KillReason.SHUTDOWN)
        await _until(lambda: not self._running)
        os.close(self._lifeline_ours)  # the end of all that hold on to the other one
        await self._keeper.stop()
        for sandbox in [*self._parking.abandoned(), *self._running]:
            sandbox.on_zygote_lost()
        await _until(self._seats.end)
        await self._seats.cleaned()
        self._release()

    def _release(self) -> None:
        self._seats.close()
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
            return unknown_task(job, self._tasks.keys())
        try:
            sandbox = await self._take()
            while sandbox.ended:  # between being given and being used
                sandbox = await self._take()
            self._running.add(sandbox)
            if self._wants_another(job):
                sandbox = await self._exchange(sandbox, job.limits.tmp or 0)
        except NoSandbox as exc:
            return not_started(job, exc)
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

    def _wants_another(self, job: Job) -> bool:
        """Whether the job's temporary folders are to be of another size than those parked."""
        tmp = job.limits.tmp
        return self._config.profile == "untrusted" and tmp is not None and tmp != self._config.tmp

    async def _exchange(self, sandbox: SandboxProcess, tmp: int) -> SandboxProcess:
        """Keep the slot of a parked sandbox, and have another one forked for it."""
        try:
            other = await self._parking.fork_for(tmp)
        finally:
            self._running.discard(sandbox)
            self._parking.put_back(sandbox)
            self._serve()
        self._running.add(other)
        return other

    async def _take(self) -> SandboxProcess:
        """A parked sandbox and a slot to run it in."""
        if self._stopping is not None or not self._open:
            raise NoSandbox("the sandbox manager was stopped", "stopped")
        if self._parking and not self._waiting and len(self._running) < self._config.slots:
            return self._parking.take()
        waiter: asyncio.Future[SandboxProcess] = self._around.loop.create_future()
        self._waiting.append(waiter)
        self._serve()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._running.discard(waiter.result())
                self._parking.put_back(waiter.result())
                self._serve()
            raise

    def _serve(self) -> None:
        """Give parked sandboxes to waiting jobs, as far as slots go; then park more."""
        while self._waiting and self._parking and len(self._running) < self._config.slots:
            waiter = self._waiting.popleft()
            if not waiter.done():
                sandbox = self._parking.take()
                self._running.add(sandbox)
                waiter.set_result(sandbox)
        self._parking.refill()

    def _wanted(self) -> int:
        # One more than can be given out at once: it is forked while the others run.
        return min(self._config.slots, _SPARE_MAX) + (self._config.slots > 1)

    def _on_end(self, sandbox: SandboxProcess) -> None:
        """A sandbox has ended, and nothing of it is left: its seat and its slot are free."""
        if self._config.ctx == "spawn":
            self._keeper.let_go_of_idle()
        if sandbox.zygote is not None:
            sandbox.zygote.sandboxes.pop(sandbox.serial, None)
        ran = sandbox in self._running
        self._running.discard(sandbox)
        self._parking.on_end(sandbox, ran=ran)
        if self._stopping is None:
            self._serve()

    def _tell_waiting(self, exc: NoSandbox) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(exc)

    # --- zygotes ----------------------------------------------------------------------------

    def _on_zygote_ready(self, zygote: ZygoteProcess) -> None:
        self._tasks = zygote.tasks
        self._renewal.begin(zygote.code)
        self._parking.dismiss_old()
        self._parking.refill()

    def _on_zygote_failed(self, why: str) -> None:
        if self._keeper.current is None:
            self._parking.on_zygote_failed(why)
            return
        log.error("the zygote cannot be replaced: its code stays", extra={"cause": why})
        self._renewal.failed()

    def _on_zygote_lost(self) -> None:
        self._parking.on_zygote_lost()

    def _look_for_renewal(self) -> None:
        loop = self._around.loop
        self._renewal_look = loop.call_later(_RENEWAL_LOOK, self._look_for_renewal)
        if self._keeper.current is None or self._keeper.is_starting:
            return
        why = self._renewal.is_due()
        if why:
            log.info("the zygote is replaced", extra={"cause": why})
            self._keeper.begin()


async def _until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, for so long as processes take to die."""
    end = time.monotonic() + _STOP_MAX
    while not condition() and time.monotonic() < end:  # noqa: ASYNC110 - the kernel sets no events
        await asyncio.sleep(_STOP_STEP)
