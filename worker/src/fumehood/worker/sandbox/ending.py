"""How a sandbox ends: told to or by itself, and gone only with all that it started.

The kill ladder: record the reason, ask for the Python stack, kill the process, kill the rest of
its cgroup or tree, wait until nothing is left, and give up waiting in time. Callbacks in the
loop's thread, none of which blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from fumehood.worker.sandbox import kernel, killer
from fumehood.worker.sandbox.child import DUMP_SIGNAL
from fumehood.worker.sandbox.poller import URGENT
from fumehood.worker.sandbox.seat import Seat
from fumehood.worker.sandbox.surroundings import Surroundings
from fumehood.worker.sandbox.verdict import KillReason

_DUMP_STEP = 0.0007  # seconds between looks at the stack while it is written
_DUMP_MAX = 0.012  # seconds; a stack not begun by then is given up, for the kill must be on time
_EXIT_MAX = 0.1  # seconds from its kill in which a process ends, but for one the kernel holds on to
_GONE_MAX = 2.0  # seconds from the kill to an outcome, even if something is unkillable
_REPORT_MAX = 0.05  # seconds that the zygote gets to report a death that was seen here first
_ASK_STEP, _ASK_TIMES = 0.002, 25  # seconds and times that the kernel is asked for a lost status


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who is told: of the process's exit, while all it left can still be read; and of the end."""

    on_exit: Callable[[], None]
    on_gone: Callable[[], None]


class Ending:
    """The process of one sandbox and everything below it, as the kernel reports of them."""

    def __init__(self, seat: Seat, around: Surroundings, hooks: Hooks) -> None:
        self.pid = 0
        self.pidfd = -1
        self.reason: KillReason | None = None  # the manager's own, recorded before any signal
        self.exited = False
        self.wait_status: int | None = None  # as of waitpid; None when the kernel's answer was lost
        self.cpu: float | None = None  # seconds, where the zygote reported them
        self.leaked = 0  # processes that outlived the task's own
        self.quarantined = False  # something could not be killed
        self.orphaned = False  # its zygote is gone
        self.over = False
        self._relayed = True  # whether the zygote reports the exit
        self._seat = seat
        self._around = around
        self._hooks = hooks
        self._timer: asyncio.TimerHandle | None = None

    def began(self, pid: int, pidfd: int, *, watched: bool) -> None:
        """The process exists. With ``watched`` nobody but the kernel reports its end."""
        self.pid, self.pidfd, self._relayed = pid, pidfd, not watched
        if watched:
            self._around.poller.add(pidfd, self._on_end_of_process)

    def is_dead(self) -> bool:
        """Whether its process has ended, as the kernel says, reported or not."""
        return self.over if self.pidfd < 0 else kernel.has_ended(self.pidfd)

    def signal(self, number: int) -> bool:
        """Send a signal. Whether there was still a process to get it."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)
                return True
        return False

    # --- the ladder -------------------------------------------------------------------------

    def kill(self, reason: KillReason, *, with_stack: bool) -> None:
        """Begin the kill ladder, unless it has begun or the process has ended."""
        if self.reason is not None or self.exited or self.over:
            return
        self.reason = reason
        if with_stack:
            self.signal(DUMP_SIGNAL)
            self._await_stack(time.monotonic() + _DUMP_MAX, 0)
        else:
            self._kill_process()

    def _await_stack(self, give_up: float, seen: int) -> None:
        size = self._seat.stack_size()
        if self.exited or (size and size == seen) or time.monotonic() >= give_up:
            self._kill_process()
        else:
            self._later(_DUMP_STEP, self._await_stack, give_up, size)

    def _kill_process(self) -> None:
        if self.over:
            return
        if self._seat.leaf is None and not self.exited and self.signal(signal.SIGSTOP):
            # Stopped, and so nobody else has its number by now. To look through a tree that does
            # not want to be found takes a while, in which the loop has other things to do.
            looking = self._around.loop.run_in_executor(None, killer.kill_tree, self.pid)
            looking.add_done_callback(lambda _: self._kill_itself())
            return
        self._kill_itself()

    def _kill_itself(self) -> None:
        if self.over:
            return
        # The process itself first, the rest of its cgroup when it has gone: the write that kills a
        # cgroup may wait tens of milliseconds behind a sandbox that is just joining its own.
        self.signal(signal.SIGKILL)
        self._later(_EXIT_MAX, self._kill_rest)
        self._watch_exit()  # should the zygote be in no state to report it

    def _kill_rest(self) -> None:
        if self._seat.leaf is not None:
            self._seat.leaf.kill()
        self._later(_GONE_MAX, self._give_up)

    def _give_up(self) -> None:
        # Publishing on time matters more than knowing: the seat is not used again.
        leaf = self._seat.leaf
        populated = leaf is not None and leaf.populated()
        self.quarantined = populated or not (self.exited or self.is_dead())
        self._finish()

    # --- the exit ---------------------------------------------------------------------------

    def _on_end_of_process(self) -> None:
        status = kernel.remembered_status(self.pidfd)
        if status is None:
            if self.orphaned:
                self._on_pidfd()
            return  # the kernel is about to reap it
        self._around.poller.forget(self.pidfd)
        self.on_exited(status, None, 0)

    def on_zygote_lost(self, *, has_job: bool) -> None:
        """The zygote is gone, and with it the relay of the exit status: the kernel is asked."""
        self.orphaned = True
        if has_job and self._around.profile == "untrusted":
            # The kernel has killed all of its PID namespace by now, or is about to.
            self.kill(KillReason.LOST, with_stack=False)
        if has_job and self.pid:
            self._watch_exit()
            return
        if self._seat.leaf is not None:
            self._seat.leaf.kill()
        self.signal(signal.SIGKILL)
        self._finish()

    def _watch_exit(self) -> None:
        if self.pidfd >= 0 and not self.exited:
            self._around.poller.remove(self.pidfd)
            self._around.poller.add(self.pidfd, self._on_pidfd)

    def _on_pidfd(self) -> None:
        if not self.is_dead():
            return  # meant for a descriptor that had this number before
        self._around.poller.remove(self.pidfd)
        # A zygote that relays knows more: the CPU time, and what the process has left behind.
        first = _REPORT_MAX if self._relayed and not self.orphaned else 0.0
        self._around.loop.call_later(first, self._ask_how_it_ended, _ASK_TIMES)

    def _ask_how_it_ended(self, times: int) -> None:
        if self.exited or self.over:
            return
        status = kernel.exit_status(self.pidfd)
        # Without a zygote init reaps it, soon; a zygote that has not done it by now is stuck.
        if status is None and times and self.orphaned:
            self._around.loop.call_later(_ASK_STEP, self._ask_how_it_ended, times - 1)
        else:
            self.on_exited(status, None, 0)

    def on_exited(self, status: int | None, cpu: float | None, leaked: int) -> None:
        """The process has ended. The attempt has when nothing that it started is left."""
        if self.exited or self.over:
            return  # known already, and now its zygote says so too
        self.exited, self.wait_status, self.cpu = True, status, cpu
        self._hooks.on_exit()
        if self.reason is None:
            self.leaked = leaked
        leaf = self._seat.leaf
        if leaf is None or not leaf.populated():
            self._finish()
            return
        if self.reason is None:
            self.leaked += len(leaf.pids())
        self._kill_rest()
        self._around.poller.add(leaf.events_fd, self._on_leaf, URGENT)
        self._on_leaf()  # it may have become empty before it was watched

    def _on_leaf(self) -> None:
        if self._seat.leaf is not None and not self._seat.leaf.populated():
            self._finish()

    def finish(self) -> None:
        """End it here and now, for it never came to exist."""
        self._finish()

    def _finish(self) -> None:
        if self.over:
            return
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._seat.leaf is not None:
            self._around.poller.remove(self._seat.leaf.events_fd)
        self._hooks.on_gone()
        if self.pidfd >= 0:
            self._around.poller.forget(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1

    def _later(self, delay: float, call: Callable[..., None], *args: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._around.loop.call_later(delay, call, *args)
