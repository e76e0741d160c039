"""The manager's view of one sandbox, from the request to fork it to its outcome.

All of it is callbacks in the loop's thread, none of which blocks: the common job costs four of
them. The verdict waits for the process's exit and for its tree to be gone, never for an EOF.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial

from fumehood.common.errors import DecodeError
from fumehood.common.outcome import Outcome, Usage
from fumehood.worker.sandbox import channel, kernel, killer, protocol, verdict
from fumehood.worker.sandbox.capture import Capture
from fumehood.worker.sandbox.child import DUMP_SIGNAL
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.poller import URGENT
from fumehood.worker.sandbox.seat import Seat
from fumehood.worker.sandbox.surroundings import Surroundings
from fumehood.worker.sandbox.verdict import Facts, KillReason, Result, SetupFault

log = logging.getLogger("fumehood.sandbox")

_DUMP_STEP = 0.0007  # seconds between looks at the stack while it is written
_DUMP_MAX = 0.012  # seconds; a stack not begun by then is given up, for the kill must be on time
_EXIT_MAX = 0.1  # seconds from its kill in which a process ends, but for one the kernel holds on to
_GONE_MAX = 2.0  # seconds from the kill to an outcome, even if something is unkillable
_START_MAX = 10.0  # seconds from dispatch to READY
_REPORT_MAX = 0.05  # seconds that the zygote gets to report a death that was seen here first
_ASK_STEP, _ASK_TIMES = 0.002, 25  # seconds and times that the kernel is asked for a lost status
_LAST_FRAMES = 400  # that a socket's buffer can hold at a sandbox's end: progress, and one result


class SandboxProcess:
    """One sandbox. ``start`` it once; its ``outcome`` future resolves once."""

    def __init__(self, serial: int, seat: Seat, around: Surroundings) -> None:
        self.serial = serial
        self.seat = seat
        self.pid = 0
        self.job: Job | None = None
        self.outcome: asyncio.Future[Outcome] | None = None
        self.ended = False
        self.quarantined = False  # something of it could not be killed
        self.orphaned = False  # its zygote is gone
        self.setup_fault: SetupFault | None = None
        self.on_parked: Callable[[SandboxProcess], None] | None = None
        self._around = around
        self.pidfd = -1
        self._reports: channel.Reports | None = None
        self._result: Result | None = None
        self._result_before_kill = True
        self._kill_reason: KillReason | None = None
        self._protocol_fault = ""
        self._wait_status: int | None = None
        self._exited = False
        self._cpu = 0.0
        self._leaked = 0
        self._given_at = self._ready_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._open_channels()

    def _open_channels(self) -> None:
        pipes: list[int] = []
        try:
            pipes += os.pipe2(os.O_CLOEXEC)
            pipes += os.pipe2(os.O_CLOEXEC)
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            for fd in pipes:
                os.close(fd)
            raise
        out, out_write, err, err_write = pipes
        self._channel.setblocking(False)
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        self._stdout, self._stderr = Capture(out), Capture(err)
        self._their_fds = [theirs.detach(), out_write, err_write]

    def fork_request(self) -> tuple[bytes, list[int]]:
        """The frame that asks the zygote for this sandbox."""
        return protocol.pack(protocol.FORK, self.serial, self.seat.number), self._their_fds

    def close_their_fds(self) -> None:
        """Close the sandbox's ends: the zygote has them now, or never will."""
        for fd in self._their_fds:
            os.close(fd)
        self._their_fds = []

    def on_forked(self, pid: int, pidfd: int) -> None:
        """It exists: it is parked from here on."""
        self.pid, self.pidfd = pid, pidfd
        self.seat.guard(pid)
        self._around.poller.add(self._channel.fileno(), self._on_frames)
        if self.on_parked is not None:
            self.on_parked(self)

    def on_fork_failed(self, number: int, text: str) -> None:
        """It never came to exist."""
        self.setup_fault = ("fork", number, text)
        self._finish()

    @property
    def was_ready(self) -> bool:
        """Whether a task's code was started in it."""
        return self._ready_at > 0

    @property
    def failed_stage(self) -> str:
        """The stage at which it failed before it was ready; empty if it said nothing."""
        return self.setup_fault[0] if self.setup_fault is not None else ""

    def describe_failure(self) -> str:
        """Why it did not become ready, in one line."""
        stage, _, text = self.setup_fault or ("start", None, "it ended before its job began")
        return f"the sandbox failed at its stage '{stage}': {text}"

    def dismiss(self) -> None:
        """End a sandbox that has no job: it leaves when its socket closes."""
        self._close_channel()

    # --- running ----------------------------------------------------------------------------

    def start(self, job: Job) -> asyncio.Future[Outcome]:
        """Hand over the job. The future gets its outcome; cancelling it ends the wait only."""
        self.job = job
        self.outcome = self._around.loop.create_future()
        self._stdout.keep = self._stderr.keep = job.output_max
        self._given_at = time.monotonic()
        self._timer = self._around.loop.call_later(_START_MAX, self.kill, KillReason.START)
        with contextlib.suppress(OSError):  # it died while parked: its exit is on the way
            channel.send_job(self._channel, job)
        # Most jobs are over before their pipes could be full: those are read once, at the end.
        self._around.poller.soon(self._watch_output)
        return self.outcome

    def _watch_output(self) -> None:
        if not self.ended:
            for capture in (self._stdout, self._stderr):
                self._around.poller.add(capture.fd, partial(self._on_output, capture))

    def _on_output(self, capture: Capture) -> None:
        if not capture.read():
            self._around.poller.remove(capture.fd)

    def _on_frames(self) -> bool:
        """Read one frame; False at the end. What an honest sandbox does not send ends it."""
        fds: list[int] = []
        try:
            frame, fds = protocol.receive(self._channel, self._around.buffer, max_fds=1)
            if frame:
                self._on_frame(bytes(frame[:1]), frame[1:], fds)
                return True
            self._close_channel()
        except BlockingIOError:
            pass
        except (ValueError, DecodeError) as exc:
            self._break_off(str(exc))
        except OSError:
            self._close_channel()
        finally:
            for fd in fds:
                os.close(fd)
        return False

    def _read_last_frames(self) -> None:
        for _ in range(_LAST_FRAMES):
            if not self._on_frames():
                return
        self._break_off("more frames at its end than a sandbox has to send")

    def _on_frame(self, kind: bytes, body: memoryview, fds: list[int]) -> None:
        if kind == protocol.SETUP_FAILED and not self._ready_at:
            self.setup_fault = channel.read_setup_fault(body)
        elif kind == protocol.READY and self.job is not None and not self._ready_at:
            self._on_ready(self.job)
        elif kind in protocol.RESULTS and self.job and self._ready_at and self._result is None:
            self._result = channel.read_result(kind, body, fds, self.job.result_max)
            self._result_before_kill = self._kill_reason is None
        elif kind == protocol.PROGRESS and self._ready_at and self._result is None:
            self._on_progress(body)
        else:
            raise ValueError(f"a frame {kind!r} that is not due")

    def _on_ready(self, job: Job) -> None:
        self._ready_at = time.monotonic()
        if self._kill_reason is None:
            self._set_timer(job.timeout, KillReason.DEADLINE)

    def _on_progress(self, body: memoryview) -> None:
        report = self.job.on_progress if self.job is not None else None
        if report is None:
            return
        self._reports = self._reports or channel.Reports()
        said = self._reports.read(body, time.monotonic())
        if said is None:
            return
        try:
            report(*said)
        except Exception:  # the listener's own: the task has nothing to do with it
            log.exception("a progress listener raised", extra={"job": self.job and self.job.job_id})

    # --- ending -----------------------------------------------------------------------------

    def _break_off(self, fault: str) -> None:
        self._protocol_fault = self._protocol_fault or fault
        self._close_channel()
        self.kill(KillReason.PROTOCOL)

    def kill(self, reason: KillReason) -> None:
        """Begin the kill ladder: record the reason, ask for the stack, then kill it all."""
        if self._kill_reason is not None or self._exited or self.ended:
            return
        self._kill_reason = reason
        if self._ready_at and reason is not KillReason.PROTOCOL:
            self._signal(DUMP_SIGNAL)
            self._await_stack(time.monotonic() + _DUMP_MAX, 0)
        else:
            self._kill_now()

    def _await_stack(self, give_up: float, seen: int) -> None:
        size = self.seat.stack_size()
        if self._exited or (size and size == seen) or time.monotonic() >= give_up:
            self._kill_now()
        else:
            self._timer = self._around.loop.call_later(_DUMP_STEP, self._await_stack, give_up, size)

    def _kill_now(self) -> None:
        if self.ended:
            return
        if self.seat.leaf is None and not self._exited and self._signal(signal.SIGSTOP):
            killer.kill_tree(self.pid)  # stopped, and so nobody else has its number by now
        # The process itself first, the rest of its cgroup when it has gone: the write that kills a
        # cgroup may wait tens of milliseconds behind a sandbox that is just joining its own.
        self._signal(signal.SIGKILL)
        self._cancel_timer()
        self._timer = self._around.loop.call_later(_EXIT_MAX, self._kill_rest)
        self._watch_exit()  # should the zygote be in no state to report it

    def _kill_rest(self) -> None:
        if self.seat.leaf is not None:
            self.seat.leaf.kill()
        self._timer = self._around.loop.call_later(_GONE_MAX, self._give_up)

    def _give_up(self) -> None:
        # Publishing on time matters more than knowing: the seat is not used again.
        leaf = self.seat.leaf
        populated = leaf is not None and leaf.populated()
        self.quarantined = populated or not (self._exited or self.is_dead())
        self._finish()

    def is_dead(self) -> bool:
        """Whether its process has ended, as the kernel says, reported or not."""
        return self.ended if self.pidfd < 0 else kernel.has_ended(self.pidfd)

    def on_zygote_lost(self) -> None:
        """The zygote is gone, and with it the relay of the exit status: the kernel is asked."""
        self.orphaned = True
        if self.job is not None and self.pid:
            self._watch_exit()
            return
        if self.seat.leaf is not None:
            self.seat.leaf.kill()
        self._signal(signal.SIGKILL)
        self.dismiss()
        self._finish()

    def _watch_exit(self) -> None:
        if self.pidfd >= 0 and not self._exited:
            self._around.poller.remove(self.pidfd)
            self._around.poller.add(self.pidfd, self._on_pidfd)

    def _on_pidfd(self) -> None:
        if not self.is_dead():
            return  # meant for a descriptor that had this number before
        self._around.poller.remove(self.pidfd)
        first = 0.0 if self.orphaned else _REPORT_MAX
        self._around.loop.call_later(first, self._ask_how_it_ended, _ASK_TIMES)

    def _ask_how_it_ended(self, times: int) -> None:
        if self._exited or self.ended:
            return
        status = kernel.exit_status(self.pidfd)
        # Without a zygote init reaps it, soon; a zygote that has not done it by now is stuck.
        if status is None and times and self.orphaned:
            self._around.loop.call_later(_ASK_STEP, self._ask_how_it_ended, times - 1)
        else:
            self.on_exited(status, 0.0, 0)

    def on_exited(self, status: int | None, cpu: float, leaked: int) -> None:
        """The process has ended. The attempt has when nothing that it started is left."""
        if self._exited:
            return  # known already, and now its zygote says so too
        self._exited, self._wait_status, self._cpu = True, status, cpu
        self._read_last_frames()
        if self._kill_reason is None:
            self._leaked = leaked
        leaf = self.seat.leaf
        if leaf is None or not leaf.populated():
            self._finish()
            return
        if self._kill_reason is None:
            self._leaked += len(leaf.pids())
        self._cancel_timer()
        self._kill_rest()
        self._around.poller.add(leaf.events_fd, self._on_leaf, URGENT)
        self._on_leaf()  # it may have become empty before it was watched

    def _on_leaf(self) -> None:
        if self.seat.leaf is not None and not self.seat.leaf.populated():
            self._finish()

    def _finish(self) -> None:
        if self.ended:
            return
        self.ended = True
        self._cancel_timer()
        if self.seat.leaf is not None:
            self._around.poller.remove(self.seat.leaf.events_fd)
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_result(self._judge())
        self._close()
        self._around.on_end(self)

    def _judge(self) -> Outcome:
        assert self.job is not None  # noqa: S101 - only what was started has an outcome
        now = time.monotonic()
        ready_at = self._ready_at or now
        facts = Facts(
            ready=bool(self._ready_at),
            result=self._result,
            result_before_kill=self._result_before_kill,
            kill_reason=self._kill_reason,
            wait_status=self._wait_status,
            protocol_fault=self._protocol_fault,
            setup_fault=self.setup_fault,
            timeout=self.job.timeout,
            result_max=self.job.result_max,
        )
        return verdict.decide(
            facts,
            job_id=self.job.job_id,
            task=self.job.task,
            attempt=self.job.attempt,
            stack=self.seat.take_stack(),
            stdout=self._stdout.drain(),
            stderr=self._stderr.drain(),
            output_dropped=self._stdout.dropped + self._stderr.dropped,
            leaked_processes=self._leaked,
            usage=Usage(wall=now - ready_at, cpu=self._cpu, setup=ready_at - self._given_at),
            finished_at=time.time(),
        )

    # --- small parts ------------------------------------------------------------------------

    def _signal(self, number: int) -> bool:
        """Whether there was still a process to get it."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)
                return True
        return False

    def _set_timer(self, delay: float, reason: KillReason) -> None:
        self._cancel_timer()
        self._timer = self._around.loop.call_later(delay, self.kill, reason)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_channel(self) -> None:
        if self._channel.fileno() >= 0:
            self._around.poller.forget(self._channel.fileno())
            self._channel.close()

    def _close(self) -> None:
        self.close_their_fds()
        self._close_channel()
        for capture in (self._stdout, self._stderr):
            self._around.poller.forget(capture.fd)
            os.close(capture.fd)
        if self.pidfd >= 0:
            self._around.poller.forget(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
