"""What becomes of tasks that crash, exit and raise."""

from __future__ import annotations

from fumehood.common import Outcome, Status
from hostile.case import (
    AnyOf,
    Case,
    Expect,
    crashed,
    exited,
    failed,
    one_of,
    timed_out,
    value,
)
from hostile.outside import MARK, Outside, sweep
from hostile.tasks import exits

_SMALL = 80 << 10  # bytes that an error's description may take, all in all


def _bounded(outcome: Outcome) -> bool:
    error = outcome.error
    return error is not None and len(error.message) + len(error.traceback) < _SMALL


def _clean_text(outcome: Outcome) -> bool:
    error = outcome.error
    return (
        error is not None
        and (error.type + error.message + error.traceback).isprintable() is not None
    )


def _message(text: str) -> dict[str, object]:
    return {f"the message holds {text!r}": lambda o: text in o.error.message}


def _raised(kind: str, message: str = "") -> Expect:
    def says(outcome: Outcome) -> bool:
        return outcome.error is not None and message in outcome.error.message

    return failed(kind, it_is_bounded=_bounded, the_message_is_right=says)


_BUILT_IN = (
    "KeyboardInterrupt", "GeneratorExit", "BaseException", "StopIteration", "StopAsyncIteration",
    "MemoryError", "RecursionError", "TimeoutError", "ConnectionResetError", "AssertionError",
    "SystemError",
)  # fmt: skip
_METHODS = ("__str__", "__repr__", "__class__", "__dict__", "args", "__reduce__", "__format__",
            "__hash__", "__eq__", "__bool__", "__len__", "__getattribute__", "__del__")  # fmt: skip
_LEFT_BEHIND = ("atexit hangs", "atexit writes", "atexit forks", "threads", "destructors",
                "streams", "generator", "stdout", "excepthook", "trace", "profile")  # fmt: skip
_PROOF = f"/tmp/{MARK}-unpickled"


def _nothing_ran(_: Outside) -> str:
    found = exits.exists(_PROOF)
    sweep()
    return "an exception was brought to life outside" if found else ""


CASES = [
    *(Case(id=name.lower(), call=exits.crash.call(name), trusted=crashed(name, "in crash"))
      for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")),
    *(Case(id=name.lower(), call=exits.crash.call(name), trusted=crashed(name))
      for name in ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGTRAP", "SIGUSR2", "SIGKILL")
      if name != "SIGPIPE"),
    Case(id="sigsys", call=exits.crash.call("SIGSYS"),
         trusted=Expect(Status.POLICY_VIOLATION, signal="SIGSYS")),
    Case(id="null", call=exits.crash.call("null"), trusted=crashed("SIGSEGV", "in crash")),
    Case(id="abort", call=exits.crash.call("abort"), trusted=crashed("SIGABRT", "in crash")),
    Case(id="bus", call=exits.crash.call("bus"),
         trusted=crashed("SIGBUS", "in _read_beyond_a_file")),
    Case(id="free", call=exits.crash.call("free"),
         trusted=AnyOf((crashed("SIGSEGV", "in crash"), crashed("SIGABRT", "in crash")))),
    Case(id="stack-overflow", call=exits.crash.call("stack"),
         trusted=AnyOf((crashed("SIGSEGV", "in _overflow"), failed("RecursionError")))),
    Case(id="fatal", call=exits.crash.call("fatal"), trusted=crashed("SIGABRT")),
    Case(id="crash-in-a-thread", call=exits.crash_in_a_thread.call(),
         trusted=crashed("SIGSEGV", "in crash_in_a_thread")),
    Case(id="crash-in-a-child", call=exits.crash_in_a_child.call(), trusted=value(6)),
    *(Case(id=f"exit-{code}", call=exits.exit_now.call(code), trusted=exited(code))
      for code in (0, 7, 70, 255)),
    Case(id="exit-in-a-thread", call=exits.exit_in_a_thread.call(5), trusted=exited(5)),
    *(Case(id=f"sys-exit-{name}", call=exits.leave.call(code), trusted=exited(left))
      for name, code, left in (("0", 0, 0), ("3", 3, 3), ("none", None, 0), ("text", "why", 1),
                               ("large", 1 << 40, 0), ("negative", -1, 255))),
    Case(id="sys-exit-in-a-thread", call=exits.leave_in_a_thread.call(), trusted=value("stayed")),
    Case(id="alarm", call=exits.alarm.call("SIGALRM", 0.05), trusted=crashed("SIGALRM")),
    Case(id="virtual-alarm", call=exits.alarm.call("SIGVTALRM", 0.05),
         trusted=crashed("SIGVTALRM")),

    *(Case(id=f"raise-{name.lower()}", call=exits.raise_plain.call(name),
           trusted=_raised(name, "on purpose"))
      for name in _BUILT_IN),
    *(Case(id=f"exception-{method}-{fault}", call=exits.raise_class.call(method, fault),
           trusted=failed("Hostile", it_is_bounded=_bounded))
      for method in _METHODS for fault in ("raises", "lies")),
    *(Case(id=f"exception-{method}-hangs", call=exits.raise_class.call(method, "hangs"),
           timeout=0.3, trusted=AnyOf((failed("Hostile"), timed_out())))
      for method in ("__str__", "__repr__", "__class__", "__getattribute__")),
    Case(id="exception-str-gorges", call=exits.raise_class.call("__str__", "gorges"),
         trusted=failed("Hostile", it_is_bounded=_bounded)),
    Case(id="exception-of-a-metaclass", call=exits.raise_with_a_metaclass.call(),
         trusted=failed("Odd", it_is_bounded=_bounded)),
    *(Case(id=f"chain-{kind}-{length}", call=exits.raise_chain.call(kind, length),
           trusted=_raised("ValueError", f"number {length - 1}"))
      for kind, length in (("cyclic", 1), ("cyclic", 3), ("straight", 10_000))),
    Case(id="large-message", call=exits.raise_large.call(64 << 20),
         trusted=_raised("ValueError", "are left out")),
    Case(id="many-notes", call=exits.raise_with_notes.call(10_000),
         trusted=_raised("ValueError", "with notes")),
    *(Case(id=f"group-{depth}-{width}", call=exits.raise_group.call(depth, width),
           trusted=_raised("ExceptionGroup", "group"))
      for depth, width in ((1, 3), (3, 1000), (500, 1), (12, 3))),
    *(Case(id=f"message-{name}", call=exits.raise_text.call(text), trusted=_raised("ValueError"))
      for name, text in (("surrogate", "\\ud800"), ("nul", "a\\x00b"), ("escape", "\\x1b[2J"),
                         ("bidi", "\\u202e"), ("astral", "\\U0010ffff"))),
    Case(id="odd-source", call=exits.raise_from_odd_source.call("odd"),
         trusted=_raised("ValueError", "odd source")),
    Case(id="liar", call=exits.raise_liar.call(_PROOF), after=_nothing_ran,
         trusted=failed("system", it_is_bounded=_bounded)),
    *(Case(id=f"leaves-{what.replace(' ', '-')}", call=exits.leave_behind.call(what),
           timeout=5.0, late=-3.0, trusted=value("returned"))
      for what in _LEFT_BEHIND),
    Case(id="no-file", call=exits.exists.call(_PROOF), trusted=one_of(False)),
]  # fmt: skip
