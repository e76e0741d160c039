"""The manager's view of one sandbox, from the request to fork it to its outcome.

All of it is callbacks in the loop's thread, none of which blocks. A short job costs two of them:
its process exists, its process has ended. What it wrote meanwhile waits in its socket and pipes
until then; only what takes longer than a few milliseconds is watched.
"""

from __future__ import annotations

import asyncio
import os
import time
from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fumehood.common.outcome import Outcome, Usage
from fumehood.worker.sandbox import protocol, verdict
from fumehood.worker.sandbox.bounds import Bounds
from fumehood.worker.sandbox.capture import Capture
from fumehood.worker.sandbox.channel import Channel
from fumehood.worker.sandbox.child import SOFT_SIGNAL
from fumehood.worker.sandbox.ending import Ending, Hooks
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.seat import Seat
from fumehood.worker.sandbox.surroundings import Surroundings
from fumehood.worker.sandbox.verdict import Facts, KillReason, Spent

if TYPE_CHECKING:
    from fumehood.worker.sandbox.zygote_process import ZygoteProcess

_START_MAX = 10.0  # seconds from dispatch to READY
_OOM_STEP, _OOM_LOOKS = (
    0.002,
    50,
)  # seconds between looks whether the kernel has killed, and how many
_FLOOD = 64  # times its output limit that an untrusted job may write before it is killed


class SandboxProcess:
    """One sandbox. ``start`` it once; its ``outcome`` future resolves once."""

    def __init__(self, serial: int, seat: Seat, around: Surroundings, tmp: int = 0) -> None:
        self.serial = serial
        self.tmp = tmp  # bytes of its private temporary folders, where it has such
        self.seat = seat
        self.zygote: ZygoteProcess | None = None
        self.job: Job | None = None
        self.outcome: asyncio.Future[Outcome] | None = None
        self.on_parked: Callable[[SandboxProcess], None] | None = None
        self.on_never: Callable[[str], object] | None = None  # told if it ends unparked
        self.ending = Ending(seat, around, Hooks(self._on_exit, self._on_gone))
        self._around = around
        self._had_result = False  # when the decision to kill was made
        self._softened = False  # whether the task was asked to stop by itself
        self._bounds: Bounds | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._open_channels()

    def _open_channels(self) -> None:
        pipes: list[int] = []
        try:
            pipes += os.pipe2(os.O_CLOEXEC)
            pipes += os.pipe2(os.O_CLOEXEC)
            # Of ``_socket``, whose objects cost half of what those of ``socket`` do.
            ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        except OSError:
            for fd in pipes:
                os.close(fd)
            raise
        out, out_write, err, err_write = pipes
        ours.setblocking(False)
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        self._channel = Channel(ours, self._around.buffer, self._around.poller.forget)
        self._stdout, self._stderr = Capture(out), Capture(err)
        self._their_fds = [theirs.detach(), out_write, err_write]

    # --- becoming ---------------------------------------------------------------------------

    def fork_request(self) -> tuple[bytes, list[int]]:
        """The frame that asks the zygote for this sandbox."""
        frame = protocol.pack(protocol.FORK, self.serial, self.seat.number, self.tmp)
        return frame, self._their_fds

    def close_their_fds(self) -> None:
        """Close the sandbox's ends: the zygote has them now, or never will."""
        for fd in self._their_fds:
            os.close(fd)
        self._their_fds = []

    def on_forked(self, pid: int, pidfd: int, *, watched: bool) -> None:
        """It exists: it is parked from here on. ``watched``: as in ``Ending.began``."""
        self.ending.began(pid, pidfd, watched=watched)
        if pid:
            self.seat.guard(pid)
        if self.on_parked is not None:
            self.on_parked(self)

    def on_fork_failed(self, number: int, text: str) -> None:
        """It never came to exist."""
        self._channel.setup_fault = ("fork", number, text)
        self.ending.finish()

    def on_zygote_lost(self) -> None:
        """Its zygote is gone: a job that runs goes on, a sandbox without one is of no use."""
        has_job = self.job is not None
        if not has_job:
            self.dismiss()
        self.ending.on_zygote_lost(has_job=has_job)

    @property
    def ended(self) -> bool:
        """Whether it and all that it started are gone."""
        return self.ending.over

    @property
    def was_ready(self) -> bool:
        """Whether a task's code was started in it."""
        return self._channel.ready_at > 0

    @property
    def failed_stage(self) -> str:
        """The stage at which it failed before it was ready; empty if it said nothing."""
        fault = self._channel.setup_fault
        return fault[0] if fault is not None else ""

    def describe_failure(self) -> str:
        """Why it did not become ready, in one line."""
        stage, _, text = self._channel.setup_fault or (
            "start",
            None,
            "it ended before its job began",
        )
        return f"the sandbox failed at its stage '{stage}': {text}"

    def dismiss(self) -> None:
        """End a sandbox that has no job: it leaves when its socket closes."""
        self._channel.close()

    # --- running ----------------------------------------------------------------------------

    def start(self, job: Job) -> asyncio.Future[Outcome]:
        """Hand over the job. The future gets its outcome; cancelling it ends the wait only."""
        self.job = job
        self.outcome = self._around.loop.create_future()
        self._stdout.keep = self._stderr.keep = job.output_max
        self._bounds = Bounds(
            job.limits, self.seat.leaf, profile=self._around.profile, own_uid=self._around.own_uids
        )
        try:
            left = self._bounds.hold(self.ending.pid)
        except OSError as exc:
            self._channel.setup_fault = ("limits", exc.errno, str(exc))
            self.kill(KillReason.START)
            return self.outcome
        self._channel.give(job, left, joins=self._bounds.joins)
        self._arm()
        self._watch_bounds()
        self._around.poller.soon(self._watch)
        return self.outcome

    def _watch(self) -> None:
        """It takes longer than most: read from now on what it says, when it says it."""
        if self.ended or self.job is None:
            return
        if self._channel.fd >= 0:
            self._around.poller.add(self._channel.fd, self._on_frames)
        for capture in (self._stdout, self._stderr):
            self._around.poller.add(capture.fd, partial(self._on_output, capture))
        if not self.was_ready:
            self._at(self._channel.given_at + _START_MAX, self.kill, KillReason.START)

    def _on_output(self, capture: Capture) -> None:
        if not capture.read():
            self._around.poller.remove(capture.fd)
        elif self._around.profile == "untrusted" and capture.dropped > _FLOOD * capture.keep:
            self.kill(KillReason.OUTPUT)

    def _on_frames(self) -> None:
        was_ready = self.was_ready
        self._channel.read()
        if self._channel.fault:
            self.kill(KillReason.PROTOCOL)
        elif self.was_ready and not was_ready:
            self._arm()

    # --- limits -----------------------------------------------------------------------------

    def _watch_bounds(self) -> None:
        """Look after the limits that the kernel alone does not hold. Most jobs have none."""
        assert self._bounds is not None  # noqa: S101 - made when the job was given
        delay = self._bounds.next_look()
        if delay is not None:
            self._look_timer = self._around.loop.call_later(delay, self._look)
        watch = self._bounds.oom_watch
        if watch is not None:
            self._around.poller.add(watch[0], self._on_oom, watch[1])

    def _look(self) -> None:
        if self._bounds is None or self.ending.reason is not None or self.ending.exited:
            return
        reason = self._bounds.look()
        if reason is not None:
            self.kill(reason)
            return
        delay = self._bounds.next_look()
        if delay is not None:
            self._look_timer = self._around.loop.call_later(delay, self._look)

    def _on_oom(self, looks: int = _OOM_LOOKS) -> None:
        # Where the kernel kills one process of a job for memory, the job is over all the same.
        if self._bounds is None or self.ended:
            return
        if self._bounds.ran_out_of_memory():
            self.kill(KillReason.MEMORY)
        elif looks > 0:  # v1 tells of it before it has killed
            self._around.loop.call_later(_OOM_STEP, self._on_oom, looks - 1)

    # --- time -------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Wake at the next instant that the job's timeouts ask for, if it is not over by then.

        Seconds count from the start of the code. Until that is known they count from the job's
        dispatch, which is earlier: what wakes too soon looks again.
        """
        if self.job is None or self.ending.reason is not None or self.ending.exited:
            return
        start = self._channel.ready_at or self._channel.given_at
        soft = self.job.soft_timeout
        if soft is not None and soft < self.job.timeout and not self._softened:
            self._at(start + soft, self._on_time)
        else:
            self._at(start + self.job.timeout, self._on_time)

    def _on_time(self) -> None:
        self._on_frames()
        if self.job is None or self.ending.reason is not None or not self.was_ready:
            return  # being killed; or not ready, and watched for that
        passed = time.monotonic() - self._channel.ready_at
        if passed >= self.job.timeout:
            self.kill(KillReason.DEADLINE)
            return
        if self.job.soft_timeout is not None and passed >= self.job.soft_timeout:
            self._softened = True
            self.ending.signal(SOFT_SIGNAL)
        self._arm()

    def _at(self, instant: float, call: Callable[..., None], *args: object) -> None:
        self._cancel_timer()
        delay = instant - time.monotonic()
        self._timer = self._around.loop.call_later(max(0.0, delay), call, *args)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_looking(self) -> None:
        self._cancel_timer()
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None

    # --- ending -----------------------------------------------------------------------------

    def kill(self, reason: KillReason) -> None:
        """End the job for ``reason``. Only what it has said by now counts."""
        if self.ending.reason is not None:
            return
        if reason is not KillReason.PROTOCOL:
            self._channel.read()
        self._had_result = self._channel.result is not None
        self._stop_looking()
        with_stack = self.was_ready and reason is not KillReason.PROTOCOL
        self.ending.kill(reason, with_stack=with_stack)

    def _on_exit(self) -> None:
        self._stop_looking()
        self._channel.read_last()

    def _on_gone(self) -> None:
        self._stop_looking()
        watch = self._bounds.oom_watch if self._bounds is not None else None
        if watch is not None:
            self._around.poller.remove(watch[0])
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_result(self._judge())
        self._close()
        self._around.on_end(self)

    def _judge(self) -> Outcome:
        assert self.job is not None  # noqa: S101 - only what was started has an outcome
        now = time.monotonic()
        ready_at = self._channel.ready_at or now
        stdout, stderr = self._stdout.drain(), self._stderr.drain()
        dropped = self._stdout.dropped + self._stderr.dropped
        spent = self._spent()
        facts = Facts(
            ready=self.was_ready,
            result=self._channel.result,
            result_before_kill=self.ending.reason is None or self._had_result,
            kill_reason=self.ending.reason,
            wait_status=self.ending.wait_status,
            protocol_fault=self._channel.fault,
            setup_fault=self._channel.setup_fault,
            timeout=self.job.timeout,
            result_max=self.job.result_max,
            output_max=self.job.output_max,
            written=len(stdout) + len(stderr) + dropped,
            limits=self.job.limits,
            spent=spent,
        )
        return verdict.decide(
            facts,
            job_id=self.job.job_id,
            task=self.job.task,
            attempt=self.job.attempt,
            stack=self.seat.take_stack(),
            stdout=stdout,
            stderr=stderr,
            output_dropped=dropped,
            leaked_processes=self.ending.leaked,
            usage=Usage(
                wall=now - ready_at,
                cpu=spent.cpu or 0.0,
                setup=ready_at - self._channel.given_at,
                memory=spent.memory or 0,
            ),
            profile=self._around.profile,
            guarantees=self._around.guarantees,
            finished_at=time.time(),
        )

    def _spent(self) -> Spent:
        spent = self._bounds.spent() if self._bounds is not None else Spent()
        return spent if spent.cpu is not None else replace(spent, cpu=self.ending.cpu)

    def _close(self) -> None:
        self.close_their_fds()
        self._channel.close()
        for capture in (self._stdout, self._stderr):
            self._around.poller.forget(capture.fd)
            os.close(capture.fd)
