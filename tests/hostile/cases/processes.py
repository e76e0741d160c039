"""What becomes of tasks that start, hide and attack processes."""

from __future__ import annotations

import signal

from fumehood.common import Limits, Outcome, Status
from hostile.case import (
    REFUSED,
    AnyOf,
    Case,
    Expect,
    NotRun,
    crashed,
    denied,
    exceeded,
    exited,
    failed,
    one_of,
    succeeded,
    timed_out,
    value,
)
from hostile.tasks import memory, processes

_HALF = 0.3  # seconds
_FEW = Limits(processes=16)
MIB = 1 << 20


def _leaked(least: int) -> Expect:
    def enough(outcome: Outcome) -> bool:
        return outcome.leaked_processes >= least

    return succeeded(**{f"at_least_{least}_leaked": enough})


# An orphan that is no more than an entry by the time of the kill is not counted.
_LEAVES = {"plain": 2, "deaf": 2, "reaper": 4, "stopped": 2, "nameless": 2, "closed": 2,
           "treadmill": 0}  # fmt: skip

# Where a signal is not denied it hits: of a trusted job's own kind, and of its zygote.
_REACHES = one_of("done", *REFUSED)

_LOSES_ZYGOTE = frozenset({"landlock", "trusted"})

CASES = [
    # The kernel refuses: the task sees BlockingIOError, threads a RuntimeError.
    Case(id="fork-bomb", call=processes.fork_bomb.call(100), limits=_FEW,
         trusted=failed("BlockingIOError"), alone=True,
         # A user's own count is all that is left, and root has none.
         without={"trusted:cgroup-pids": AnyOf((failed("BlockingIOError"), value("unbounded")))}),
    Case(id="thread-bomb", call=processes.thread_bomb.call(100), limits=_FEW,
         trusted=failed("RuntimeError"), alone=True,
         without={"trusted:cgroup-pids": AnyOf((failed("RuntimeError"), value("unbounded")))}),
    Case(id="stubborn-fork-bomb", call=processes.stubborn_fork_bomb.call(200), limits=_FEW,
         timeout=0.5, trusted=timed_out(), alone=True),
    Case(id="exec-storm", call=processes.exec_storm.call(), timeout=_HALF, trusted=timed_out(),
         untrusted=AnyOf((timed_out(), failed())), alone=True),

    # Alone: without cgroups the zygote cannot tell whose orphans it finds.
    *(Case(id=f"daemons-{how}", call=processes.leave_daemons.call(2, how), trusted=_leaked(least),
           alone=True)
      for how, least in _LEAVES.items()),
    Case(id="daemons-many", call=processes.leave_daemons.call(20), trusted=_leaked(20), alone=True),
    Case(id="daemons-and-hang", call=processes.leave_daemon_and_hang.call(), timeout=_HALF,
         trusted=timed_out("in leave_daemon_and_hang")),
    Case(id="treadmill-and-hang", call=processes.leave_daemon_and_hang.call("treadmill"),
         timeout=_HALF, trusted=timed_out(), alone=True),
    Case(id="daemons-and-crash", call=processes.leave_daemon_and_crash.call(),
         trusted=crashed("SIGABRT", "in leave_daemon_and_crash")),
    Case(id="runs-away", call=processes.run_away_and_hang.call(), timeout=2.0,
         trusted=exited(0)),
    Case(id="shakes-off", call=processes.shake_off_and_hang.call(), timeout=_HALF,
         trusted=timed_out()),
    Case(id="zombies", call=processes.leave_zombies.call(20), trusted=value("left")),

    Case(id="exec", call=processes.exec_true.call(), trusted=exited(0),
         untrusted=AnyOf((exited(0), failed()))),
    Case(id="program", call=processes.run_program.call(), trusted=value("done"),
         untrusted=one_of("done", *REFUSED)),
    Case(id="exec-and-hang", call=processes.exec_a_sleeper.call(), timeout=_HALF,
         trusted=timed_out(), untrusted=AnyOf((timed_out(), failed()))),

    # A trusted job's signals end at the domain that it shares with its zygote and its siblings: the
    # node is out of reach, and a zygote that is lost is replaced.
    Case(id="kill-parent", call=processes.kill_parent.call(), trusted=_REACHES, alone=True,
         untrusted=one_of("done", "ESRCH", *REFUSED), loses_zygote=_LOSES_ZYGOTE),
    Case(id="stop-parent", call=processes.stop_parent.call(),
         trusted=NotRun("that it is replaced is test_sandbox_life's"),
         untrusted=one_of("done", "ESRCH", *REFUSED), loses_zygote=frozenset({"landlock"})),
    Case(id="kill-everything", call=lambda o: processes.kill_everything.call(o.decoy.pid),
         trusted=value("survived"), alone=True, loses_zygote=_LOSES_ZYGOTE,
         without={"trusted:landlock": value("reachable"),
                  "untrusted:landlock+namespaces": one_of("survived", "reachable")}),
    Case(id="signal-outside",
         call=lambda o: processes.signal_outside.call(o.decoy.pid, int(signal.SIGTERM)),
         trusted=denied, untrusted=one_of("ESRCH", *REFUSED),
         without={"trusted:landlock": NotRun("nothing but Landlock keeps it from doing so"),
                  "untrusted:landlock+namespaces+root":
                  NotRun("nothing is left that could deny it")}),
    Case(id="kill-groups", call=processes.kill_groups.call(),
         trusted=one_of("done", "no other", "ESRCH", *REFUSED),
         untrusted=one_of("no other", "ESRCH", *REFUSED)),

    Case(id="press-ahead", call=processes.press_ahead.call(), timeout=_HALF, trusted=timed_out(),
         alone=True),
    Case(id="raise-priority", call=processes.raise_priority.call(), trusted=succeeded(),
         untrusted=Expect(Status.SUCCEEDED, where={
             "all is denied": lambda o: all(each in ("EPERM", "EACCES") for each in o.value)})),
    Case(id="raise-limits", call=processes.raise_limits.call(), trusted=succeeded(),
         untrusted=value([])),

    # Limits hold for what a job execs, and for all that it starts together.
    Case(id="memory-of-children", call=memory.in_many_children.call(8, 24 * MIB), timeout=5.0,
         limits=Limits(memory=96 * MIB), trusted=exceeded("memory"), alone=True,
         without={"cgroup-memory": AnyOf((succeeded(), exceeded("memory")))}),
]  # fmt: skip
