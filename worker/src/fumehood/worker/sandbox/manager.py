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
from dataclasses import dataclass, field, replace
from typing import Literal

from fumehood.common.outcome import Outcome
from fumehood.common.task import Profile
from fumehood.worker.sandbox import environment, protocol
from fumehood.worker.sandbox.confinement import Config, Report
from fumehood.worker.sandbox.declared import Declared
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.poller import Poller
from fumehood.worker.sandbox.process import SandboxProcess
from fumehood.worker.sandbox.refusal import NoSandbox, not_started, unknown_task
from fumehood.worker.sandbox.renewal import Lifetime, Renewal
from fumehood.worker.sandbox.seats import Seats
from fumehood.worker.sandbox.surroundings import Surroundings
from fumehood.worker.sandbox.verdict import KillReason
from fumehood.worker.sandbox.zygote_keeper import Listener, ZygoteKeeper
from fumehood.worker.sandbox.zygote_process import ZygoteConfig, ZygoteProcess

log = logging.getLogger("fumehood.sandbox")

_SPARE_MAX = 4  # sandboxes parked beyond the ones that run; more cost memory and gain nothing
_RETRY_FIRST, _RETRY_MAX = 0.05, 5.0  # seconds before a failed start is tried again
_FAILURES_MAX = 3  # starts that failed in a row before a waiting job is told
_RENEWAL_LOOK = 1.0  # seconds between looks whether the zygote is to be replaced
#: Bytes; what an untrusted job may write to its temporary folders unless somebody says otherwise.
DEFAULT_TMP = 64 << 20
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
    profile: Profile = "trusted"
    tmp: int = (
        DEFAULT_TMP  # bytes of private temporary folders, for untrusted jobs that say nothing
    )
    show: Sequence[str] = ()  # further files and folders that untrusted jobs may read
    lifetime: Lifetime = field(default_factory=Lifetime)
    watch_code: bool = True
    guarantees: tuple[str, ...] = ()  # what is said in outcomes to have been enforced


class SandboxManager:
    """Runs jobs in sandboxes, ``slots`` at a time. Belongs to one event loop."""

    def __init__(self, config: ManagerConfig) -> None:
        self._config = config
        self._serials = itertools.count(1)
        self._parked: deque[SandboxProcess] = deque()
        self._forking: set[SandboxProcess] = set()
        self._running: set[SandboxProcess] = set()
        self._waiting: deque[asyncio.Future[SandboxProcess]] = deque()
        self._tasks: dict[str, Declared] = {}
        self._renewal = Renewal(config.lifetime)
        self._renewal_look: asyncio.TimerHandle | None = None
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
        own_ids = self._config.profile == "untrusted"
        self._seats = Seats(
            self._config.disabled, self._lifeline, self._config.slots, own_ids=own_ids
        )
        self._around = Surroundings(
            loop,
            self._poller,
            buffer,
            self._on_end,
            profile=self._config.profile,
            guarantees=self._config.guarantees,
            own_uids=self._seats.ids is not None,
        )
        self._failures = self._losses = 0
        self._keeper = ZygoteKeeper(self._zygote_config(), self._poller, self._listener())
        self._stopping, self._open = None, True
        try:
            await asyncio.to_thread(self._seats.make_tree)
            self._keeper.change(self._zygote_config())
            await self._keeper.start()
            self._look_for_renewal()
        except BaseException:
            await self.stop()
            raise

    def _zygote_config(self) -> ZygoteConfig:
        config = self._config
        config_of = ZygoteConfig(
            modules=config.modules,
            env=environment.allowed(config.environ, config.env, config.profile),
            lifeline=self._lifeline,
            kill_all=self._seats.kill_fd,
            has_cgroups=self._seats.tree is not None,
            start_timeout=config.start_timeout,
            disabled=config.disabled,
            watch=config.watch_code,
        )
        if config.profile == "trusted":
            return config_of
        ids = self._seats.ids
        confinement: Config = {
            "path": list(config_of.path),
            "cwd": os.getcwd(),
            "show": list(config.show),
            "hide": [],
            "uids": 0 if ids is None else ids.base,
            "slots": 0 if ids is None else ids.slots,
            "disabled": sorted(config.disabled),
        }
        return replace(config_of, confinement=confinement)

    def _listener(self) -> Listener:
        return Listener(self._on_zygote_ready, self._on_zygote_lost, self._on_zygote_failed)

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
        for timer in (self._retry, self._renewal_look):
            if timer is not None:
                timer.cancel()
        self._retry = self._renewal_look = None
        self._tell_waiting(NoSandbox("the sandbox manager was stopped", "stopped"))
        self.kill_all(KillReason.SHUTDOWN)
        await _until(lambda: not self._running)
        os.close(self._lifeline_ours)  # the end of all that hold on to the other one
        await self._keeper.stop()
        for sandbox in [*self._parked, *self._forking, *self._running]:
            sandbox.on_zygote_lost()
        await _until(self._seats.end)
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
            seat = self._seats.take()
        except OSError as exc:
            if isinstance(exc, FileNotFoundError):
                self._seats.renew_tree()
                self._keeper.change(self._zygote_config())
            self._on_failed_start(f"no cgroup can be made: {exc}", "cgroup")
            return
        try:
            sandbox = SandboxProcess(next(self._serials), seat, self._around, self._config.tmp)
        except OSError as exc:
            self._seats.put_back(seat)
            self._on_failed_start(f"no channels can be made: {exc}", "channels")
            return
        self._renewal.count()
        self._forking.add(sandbox)
        sandbox.on_parked = self._on_parked
        zygote.fork(sandbox)

    def _on_parked(self, sandbox: SandboxProcess) -> None:
        self._losses = 0
        self._forking.discard(sandbox)
        self._parked.append(sandbox)
        self._serve()

    def _on_end(self, sandbox: SandboxProcess) -> None:
        """A sandbox has ended, and nothing of it is left: its seat is free."""
        if self._config.ctx == "spawn":
            self._keeper.let_go_of_idle()
        if sandbox.zygote is not None:
            sandbox.zygote.sandboxes.pop(sandbox.serial, None)
        ran = sandbox in self._running
        self._running.discard(sandbox)
        self._forking.discard(sandbox)
        if sandbox in self._parked:
            self._parked.remove(sandbox)
        self._clear_seat(sandbox)
        if ran and sandbox.was_ready:
            self._failures = 0
        elif self._stopping is None and not sandbox.ending.orphaned:
            self._on_failed_start(sandbox.describe_failure(), sandbox.failed_stage)
        if self._stopping is None:
            self._serve()

    def _clear_seat(self, sandbox: SandboxProcess) -> None:
        if sandbox.ending.quarantined:
            log.error(
                "a sandbox could not be killed: its seat is not used again",
                extra={"pid": sandbox.ending.pid},
            )
            sandbox.seat.abandon()
        elif self._stopping is not None or sandbox.failed_stage == "cgroup":
            self._seats.drop(sandbox.seat)
        else:
            self._seats.put_back(sandbox.seat)

    # --- failures ---------------------------------------------------------------------------

    def _on_failed_start(self, why: str, stage: str) -> None:
        self._failures += 1
        self._back_off(why, stage)

    def _on_zygote_failed(self, why: str) -> None:
        if self._keeper.current is not None:  # it goes on with the code that it has
            log.error("the zygote cannot be replaced", extra={"cause": why})
            self._renewal.failed()
            return
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
        self._tasks = zygote.tasks
        self._renewal.begin(zygote.code)
        for sandbox in [box for box in self._parked if box.zygote is not zygote]:
            self._parked.remove(sandbox)
            sandbox.dismiss()  # of the generation before, whose code may be another
        self._refill()

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
