"""What becomes of tasks that take too long."""

from __future__ import annotations

from fumehood.common import Limits, Status
from hostile.case import AnyOf, Case, Expect, NotRun, exceeded, failed, timed_out, value
from hostile.tasks import times

_HALF = 0.25  # seconds

CASES = [
    Case(id="busy", call=times.busy.call(), timeout=_HALF, trusted=timed_out("in busy")),
    Case(id="sleep", call=times.sleep.call(), timeout=_HALF, trusted=timed_out("in sleep")),
    Case(id="async-blocked", call=times.block_the_loop.call(), timeout=_HALF,
         trusted=timed_out("in block_the_loop")),
    Case(id="signals-ignored", call=times.ignore_signals.call(), timeout=_HALF,
         trusted=timed_out()),
    Case(id="signals-blocked", call=times.block_signals.call(), timeout=_HALF,
         trusted=timed_out()),
    Case(id="signals-handled", call=times.handle_signals.call(), timeout=_HALF,
         trusted=timed_out()),
    Case(id="stopped", call=times.stop_yourself.call(), timeout=_HALF, trusted=timed_out()),
    Case(id="regex", call=times.regex.call(), timeout=_HALF, trusted=timed_out("in match")),
    Case(id="power", call=times.power.call(), timeout=_HALF, trusted=timed_out("in power")),
    Case(id="sum", call=times.sum_up.call(), timeout=_HALF, trusted=timed_out("in sum_up")),
    Case(id="gil", call=times.hold_the_gil.call(), timeout=_HALF,
         trusted=timed_out("in hold_the_gil")),
    Case(id="deadlock", call=times.deadlock.call(), timeout=_HALF,
         trusted=timed_out("in deadlock")),
    Case(id="shortest-timeout", call=times.sleep.call(), timeout=0.001, trusted=timed_out()),

    # The soft timeout is the task's chance, and nothing but that.
    Case(id="soft-heeded", call=times.heed_the_soft_timeout.call(), timeout=2.0,
         trusted=value("tidied up")),
    Case(id="soft-unhandled", call=times.fail_by_the_soft_timeout.call(), timeout=2.0,
         trusted=failed("SoftTimeout")),
    Case(id="soft-swallowed", call=times.swallow_everything.call(), timeout=0.4,
         trusted=timed_out("in swallow_everything")),
    Case(id="soft-unheard", call=times.deaf_to_the_soft_timeout.call(), timeout=0.4,
         trusted=timed_out("in deaf_to_the_soft_timeout")),

    Case(id="threads", call=times.spin_in_threads.call(64), timeout=_HALF, alone=True,
         trusted=timed_out("Thread 0x")),
    Case(id="children", call=times.spin_in_children.call(16), timeout=_HALF, alone=True,
         trusted=timed_out()),
    Case(id="cpu-of-threads", call=times.spin_in_threads.call(16), timeout=8.0, alone=True,
         limits=Limits(cpu=0.5), trusted=exceeded("cpu")),
    Case(id="cpu", call=times.busy.call(), timeout=8.0, limits=Limits(cpu=0.5),
         trusted=exceeded("cpu")),
    Case(id="cpu-signal-ignored", call=times.ignore_the_cpu_limit.call(), timeout=8.0,
         limits=Limits(cpu=0.5), trusted=exceeded("cpu")),
    Case(id="cpu-of-children", call=times.spin_in_children.call(8), timeout=3.0, alone=True,
         limits=Limits(cpu=0.5), trusted=exceeded("cpu"),
         # Without a count for the whole each process has its own, and the first one hardly runs.
         without={"cgroup": AnyOf((exceeded("cpu"), timed_out()))}),
    Case(id="cpu-of-the-dead", call=times.children_that_burn_in_turn.call(0.05), timeout=4.0,
         alone=True, limits=Limits(cpu=0.5), trusted=exceeded("cpu"),
         without={"cgroup": timed_out()}),

    Case(id="clock", call=times.set_the_clock.call(1.0),
         trusted=NotRun("it would set the clock of this host"),
         untrusted=value("denied")),
    # Whichever comes first, there is one outcome.
    *(Case(id=f"at-the-deadline-{round(late * 1000)}ms", call=times.sleep.call(0.1 + late),
           timeout=0.1,
           trusted=AnyOf((value("slept"), timed_out())))
      for late in (-0.004, -0.002, -0.001, 0.0, 0.001, 0.002)),
    Case(id="no-such-file", call=times.look_at.call("/none/here"),
         trusted=Expect(Status.FAILED, error="FileNotFoundError")),
]  # fmt: skip
