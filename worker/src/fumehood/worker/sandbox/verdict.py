"""The verdict on an attempt: first match wins, by kernel facts and the manager's own log.

Content comes from the child and is never trusted; the status never depends on it alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Required, TypedDict

from fumehood.common.limits import Limits
from fumehood.common.outcome import Blame, ErrorInfo, Outcome, Status


class KillReason(Enum):
    """Why the manager decided to kill; recorded before the first signal is sent."""

    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    PROTOCOL = "protocol"
    START = "start"
    LOST = "lost"  # the zygote that its namespaces hang on is gone
    OUTPUT = "output"
    CPU = "cpu"
    MEMORY = "memory"


#: Stage, errno and text of a sandbox that failed before it could run anything.
SetupFault = tuple[str, int | None, str]


@dataclass(frozen=True, slots=True)
class Spent:
    """What an attempt has used, as far as this host counts it."""

    cpu: float | None = None  # seconds
    memory: int | None = None  # bytes; the most at one time
    out_of_memory: bool = False  # the kernel, or a look, found it above its memory limit
    host_out_of_memory: bool = False  # the kernel killed it for memory, and its limit was not why
    process_limit_hits: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A complete result frame: a value, an error, or why there is neither."""

    value: bytes | None = None
    error: ErrorInfo | None = None
    too_large: int | None = None  # bytes that the encoded value would take
    refused: str | None = None  # why the arguments cannot be read


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known when an attempt has ended."""

    ready: bool  # the task's code was started
    result: Result | None = None
    result_before_kill: bool = True
    kill_reason: KillReason | None = None
    wait_status: int | None = None  # as of waitpid; None when the kernel's answer was lost
    protocol_fault: str = ""
    setup_fault: SetupFault | None = None
    timeout: float = 0.0
    result_max: int = 0
    output_max: int = 0
    written: int = 0  # bytes that it wrote to stdout and stderr
    limits: Limits = Limits()  # noqa: RUF009 - it is frozen
    spent: Spent = Spent()


class _Verdict(TypedDict, total=False):
    """What a rule says of an outcome."""

    status: Required[Status]
    blame: Blame
    reason: str
    value_bytes: bytes | None
    error: ErrorInfo | None
    exit_code: int | None
    signal: str | None
    limit: str | None
    limit_value: float | None
    peak: float | None
    stage: str | None


def decide(facts: Facts, **about: Any) -> Outcome:
    """The outcome; ``about`` is what else belongs in it (names, usage, output, stack)."""
    for rule in _RULES:
        said = rule(facts)
        if said is not None:
            return Outcome(**said, **about)
    raise AssertionError("the last rule always matches")


def _by_result(facts: Facts) -> _Verdict | None:
    result = facts.result
    if result is None or not facts.result_before_kill or facts.protocol_fault:
        return None
    # Without the kernel's answer a complete result stands: the process is known to be gone.
    if facts.wait_status not in (0, None):
        return None
    if result.value is not None:
        return _Verdict(status=Status.SUCCEEDED, value_bytes=result.value, exit_code=0)
    if result.too_large is not None:
        reason = (
            f"the value takes {result.too_large} bytes, the result limit is {facts.result_max}: "
            "store it and return a reference to it"
        )
        return _Verdict(
            status=Status.LIMIT_EXCEEDED,
            blame=Blame.LIMIT,
            reason=reason,
            limit="result",
            limit_value=facts.result_max,
            peak=result.too_large,
            exit_code=0,
        )
    if result.refused is not None:
        reason = f"the arguments cannot be read: {result.refused}"
        return _Verdict(status=Status.REJECTED, blame=Blame.POLICY, reason=reason)
    return _Verdict(
        status=Status.FAILED,
        blame=Blame.TASK,
        reason="the task raised",
        error=result.error,
        exit_code=0,
    )


def _by_kill(facts: Facts) -> _Verdict | None:
    match facts.kill_reason:
        case KillReason.DEADLINE:
            return _Verdict(
                status=Status.TIMED_OUT,
                blame=Blame.LIMIT,
                reason=f"killed at its timeout of {facts.timeout:g} s",
                limit="timeout",
                limit_value=facts.timeout,
                signal="SIGKILL",
            )
        case KillReason.CANCELLED:
            reason = "cancelled while it ran"
            return _killed(Status.CANCELLED, Blame.POLICY, reason)
        case KillReason.SHUTDOWN:
            reason = "the node was stopped before the job ended"
            return _killed(Status.CANCELLED, Blame.INFRA, reason)
        case KillReason.LOST:
            reason = "its zygote was lost, and the namespaces that held the job with it"
            return _killed(Status.CRASHED, Blame.INFRA, reason)
        case KillReason.START:
            slow = ("ready", None, "it did not become ready in time")
            return _start_failed(facts.setup_fault or slow)
        case KillReason.OUTPUT:
            return _exceeded("output", facts.output_max, facts.written, "bytes")
        case KillReason.CPU:
            return _cpu_exceeded(facts)
        case KillReason.MEMORY:
            return _memory_exceeded(facts)
        case _:
            return None


def _killed(status: Status, blame: Blame, reason: str) -> _Verdict:
    return _Verdict(status=status, blame=blame, reason=reason, signal="SIGKILL")


def _exceeded(
    limit: str, value: float | None, peak: float | None, unit: str, signal: str = "SIGKILL"
) -> _Verdict:
    allowed = "" if value is None else f" of {_plainly(value)} {unit}"
    reached = "" if peak is None else f", it had reached {_plainly(peak)}"
    return _Verdict(
        status=Status.LIMIT_EXCEEDED,
        blame=Blame.LIMIT,
        reason=f"it went over its {limit.replace('_', ' ')} limit{allowed}{reached}",
        limit=limit,
        limit_value=value,
        peak=peak,
        signal=signal,
    )


def _plainly(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _cpu_exceeded(facts: Facts, signal: str = "SIGKILL") -> _Verdict:
    return _exceeded("cpu", facts.limits.cpu, facts.spent.cpu, "s", signal)


def _memory_exceeded(facts: Facts) -> _Verdict:
    return _exceeded("memory", facts.limits.memory, facts.spent.memory, "bytes")


def _by_memory(facts: Facts) -> _Verdict | None:
    if facts.spent.out_of_memory:
        return _memory_exceeded(facts)
    if facts.spent.host_out_of_memory:
        reason = "killed by the kernel: the host, or the node's own cgroup, was out of memory"
        return _killed(Status.CRASHED, Blame.INFRA, reason)
    return None


def _by_protocol(facts: Facts) -> _Verdict | None:
    if not facts.protocol_fault:
        return None
    reason = f"the sandbox broke its protocol: {facts.protocol_fault}"
    return _Verdict(status=Status.PROTOCOL_ERROR, blame=Blame.TASK, reason=reason)


def _by_start(facts: Facts) -> _Verdict | None:
    if facts.ready:
        return None
    return _start_failed(
        facts.setup_fault or ("ready", None, "it ended before the task's code began")
    )


def _start_failed(fault: SetupFault) -> _Verdict:
    stage, number, text = fault
    name = f" ({os.strerror(number)})" if number else ""
    reason = f"the sandbox failed at its stage '{stage}': {text}{name}"
    return _Verdict(status=Status.START_FAILED, blame=Blame.INFRA, reason=reason, stage=stage)


def _by_signal(facts: Facts) -> _Verdict | None:
    if facts.wait_status is None or not os.WIFSIGNALED(facts.wait_status):
        return None
    number = os.WTERMSIG(facts.wait_status)
    name = signal_name(number)
    if number == signal.SIGSYS:
        reason = "killed by SIGSYS: a system call that its profile forbids"
        return _Verdict(
            status=Status.POLICY_VIOLATION, blame=Blame.POLICY, reason=reason, signal=name
        )
    if number == signal.SIGXCPU or (number == signal.SIGKILL and _is_at_cpu_limit(facts)):
        return _cpu_exceeded(facts, name)
    if number == signal.SIGXFSZ:
        return _exceeded("file_size", facts.limits.file_size, None, "bytes", name)
    if number == signal.SIGKILL:
        reason = "killed from outside: SIGKILL that nobody here sent"
        return _Verdict(status=Status.CRASHED, blame=Blame.INFRA, reason=reason, signal=name)
    return _Verdict(
        status=Status.CRASHED, blame=Blame.TASK, reason=f"the process died by {name}", signal=name
    )


def _is_at_cpu_limit(facts: Facts) -> bool:
    """Whether a SIGKILL is the kernel's own, a second after a SIGXCPU that the task ignored."""
    limit, spent = facts.limits.cpu, facts.spent.cpu
    return limit is not None and spent is not None and spent >= limit


def _by_exit(facts: Facts) -> _Verdict:
    if facts.wait_status is None:
        reason = "the process is gone, and with it how it ended"
        return _Verdict(status=Status.CRASHED, blame=Blame.INFRA, reason=reason)
    code = os.waitstatus_to_exitcode(facts.wait_status)
    reason = f"the process exited with code {code} without handing over a result"
    return _Verdict(status=Status.EXITED, blame=Blame.TASK, reason=reason, exit_code=code)


_RULES: tuple[Callable[[Facts], _Verdict | None], ...] = (
    _by_result,
    _by_kill,
    _by_protocol,
    _by_memory,
    _by_start,
    _by_signal,
    _by_exit,
)


def signal_name(number: int) -> str:
    """Such as ``SIGSEGV``; ``SIG40`` for numbers without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
