"""What becomes of values and output that are odd, large, late or endless."""

from __future__ import annotations

import datetime as dt

from fumehood.common import Limits, Outcome, Status
from hostile.case import AnyOf, Case, Expect, crashed, exceeded, failed, timed_out, value
from hostile.tasks import results

KIB, MIB = 1 << 10, 1 << 20


def _not_carried(outcome: Outcome) -> bool:
    return outcome.error is not None and "cannot be carried" in outcome.error.message


_NOT_CARRIED = failed("", it_says_why=_not_carried)
_ODD = ("object", "circle", "deep", "surrogate", "lock", "class", "module", "file", "keys",
        "coroutine", "generator", "async generator", "future")  # fmt: skip


def _output(size: int, dropped: bool) -> Expect:
    return Expect(Status.SUCCEEDED, where={
        "what is kept has its bound": lambda o: len(o.stdout) <= size,
        "what is dropped is counted": lambda o: (o.output_dropped > 0) == dropped,
    })  # fmt: skip


def _whole(size: int) -> Expect:
    return Expect(Status.SUCCEEDED, where={"all of it": lambda o: o.value == b"\xa5" * size})


def _size(size: int) -> Expect:
    return Expect(Status.SUCCEEDED, where={"all of it": lambda o: o.value == bytes(size)})


_HUGE = Expect(Status.SUCCEEDED, where={"all digits": lambda o: o.value == 10**5000})
_FLOOD = 96 * MIB

CASES = [
    *(Case(id=f"value-{what.replace(' ', '-')}", call=results.give_odd.call(what),
           trusted=_NOT_CARRIED) for what in _ODD),
    # A subclass may be refused, or carried as what it claims to be; it never ends anything else.
    *(Case(id=f"value-{what.replace(' ', '-')}", call=results.give_odd.call(what),
           trusted=AnyOf((failed(), Expect(Status.SUCCEEDED), Expect(Status.EXITED))))
      for what in ("lying list", "lying text")),
    Case(id="value-huge-int", call=results.give_odd.call("huge int"),
         trusted=AnyOf((_HUGE, _NOT_CARRIED))),
    *(Case(id=f"plain-{what.replace(' ', '-')}", call=results.give_plain.call(what),
           trusted=value(wanted))
      for what, wanted in {
          "infinity": float("-inf"), "set": {1, 2}, "bytes": bytes(range(256)), "nul": "a\0b",
          "time": dt.datetime(2000, 1, 1, tzinfo=dt.UTC),
          "nested": {"a": [{"b": (1, None, True)}]}, "large int": 2**64 - 1,
      }.items()),
    Case(id="plain-nan", call=results.give_plain.call("nan"),
         trusted=Expect(Status.SUCCEEDED, where={"it is none": lambda o: o.value != o.value})),
    *(Case(id=f"size-{size}", call=results.give_size.call(size), trusted=_size(size))
      for size in (0, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 100 * KIB, MIB, 8 * MIB)),
    Case(id="text", call=results.give_text.call(MIB), trusted=value("\ud7ff" * MIB)),
    Case(id="too-large", call=results.give_size.call(64 * MIB), trusted=exceeded("result")),
    Case(id="too-large-for-its-limit", call=results.give_size.call(100 * KIB),
         limits=Limits(result=10 * KIB), trusted=Expect(
             Status.LIMIT_EXCEEDED, limit="result",
             where={"limit and size are told": lambda o: o.limit_value == 10 * KIB})),
    Case(id="gigabyte", call=results.give_size.call(1 << 30), alone=True, late=10.0,
         limits=Limits(memory=4 << 30), trusted=exceeded("result")),
    Case(id="encoded-too-late", call=results.give_slowly.call(2_000_000), timeout=0.4,
         trusted=timed_out()),
    *(Case(id=f"killed-in-mid-send-{size}-{microseconds}us",
           call=results.give_too_late.call(size, microseconds / 1e6),
           trusted=AnyOf((_whole(size), crashed("SIGALRM"))))
      for size in (100 * KIB, 4 * MIB)
      for microseconds in (1, 50, 100, 200, 400, 700, 1100, 1600, 2500)),
    Case(id="coroutine", call=results.give_later.call(), trusted=value("later")),
    Case(id="tasks-left", call=results.leave_tasks_behind.call(), timeout=5.0, late=-3.0,
         trusted=value("returned")),
    Case(id="tasks-that-stay", call=results.refuse_to_be_cancelled.call(), timeout=0.5,
         trusted=AnyOf((value("returned"), timed_out()))),

    Case(id="flood", call=results.flood.call(1, _FLOOD), timeout=20.0, trusted=_output(MIB, True),
         untrusted=exceeded("output")),
    Case(id="flood-of-errors", call=results.flood.call(2, _FLOOD), timeout=20.0,
         trusted=_output(0, True), untrusted=exceeded("output")),
    Case(id="flood-above-its-limit", call=results.flood.call(1, 4 * MIB),
         limits=Limits(output=10 * KIB), trusted=_output(10 * KIB, True),
         untrusted=exceeded("output")),
    Case(id="flood-of-a-daemon", call=results.flood_from_a_daemon.call(_FLOOD),
         trusted=value("left"), untrusted=AnyOf((value("left"), exceeded("output")))),
    Case(id="much-output", call=results.flood.call(1, 2 * MIB), trusted=_output(MIB, True)),
    *(Case(id=f"output-{what}", call=results.print_odd.call(what), trusted=value("printed"))
      for what in ("binary", "escapes", "half", "protocol", "lines", "nul")),
    Case(id="output-surrogate", call=results.print_surrogate.call(), trusted=value("printed")),
    Case(id="progress", call=results.flood_with_progress.call(20_000), trusted=value("told")),
]  # fmt: skip
