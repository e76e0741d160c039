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

from fumehood.common.outcome import Blame, ErrorInfo, Outcome, Status


class KillReason(Enum):
    """Why the manager decided to kill; recorded before the first signal is sent."""

    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    PROTOCOL = "protocol"
    START = "start"


#: Stage, errno and text of a sandbox that failed before it could run anything.
SetupFault = tuple[str, int | None, str]


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
            reason = f"killed at its timeout of {facts.timeout:g} s"
            return _Verdict(
                status=Status.TIMED_OUT,
                blame=Blame.LIMIT,
                reason=reason,
                limit="timeout",
                signal="SIGKILL",
            )
        case KillReason.CANCELLED:
            return _Verdict(
                status=Status.CANCELLED,
                blame=Blame.POLICY,
                reason="cancelled while it ran",
                signal="SIGKILL",
            )
        case KillReason.SHUTDOWN:
            reason = "the node was stopped before the job ended"
            return _Verdict(
                status=Status.CANCELLED, blame=Blame.INFRA, reason=reason, signal="SIGKILL"
            )
        case KillReason.START:
            reason = "the sandbox did not become ready in time"
            return _Verdict(
                status=Status.START_FAILED, blame=Blame.INFRA, reason=reason, stage="ready"
            )
        case _:
            return None


def _by_protocol(facts: Facts) -> _Verdict | None:
    if not facts.protocol_fault:
        return None
    reason = f"the sandbox broke its protocol: {facts.protocol_fault}"
    return _Verdict(status=Status.PROTOCOL_ERROR, blame=Blame.TASK, reason=reason)


def _by_start(facts: Facts) -> _Verdict | None:
    if facts.ready:
        return None
    stage, number, text = facts.setup_fault or (
        "ready",
        None,
        "it ended before the task's code began",
    )
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
    if number == signal.SIGXCPU:
        reason = "killed by SIGXCPU: its CPU limit"
        return _Verdict(
            status=Status.LIMIT_EXCEEDED, blame=Blame.LIMIT, reason=reason, limit="cpu", signal=name
        )
    if number == signal.SIGXFSZ:
        reason = "killed by SIGXFSZ: its file size limit"
        return _Verdict(
            status=Status.LIMIT_EXCEEDED,
            blame=Blame.LIMIT,
            reason=reason,
            limit="file_size",
            signal=name,
        )
    if number == signal.SIGKILL:
        reason = "killed from outside: SIGKILL that nobody here sent"
        return _Verdict(status=Status.CRASHED, blame=Blame.INFRA, reason=reason, signal=name)
    return _Verdict(
        status=Status.CRASHED, blame=Blame.TASK, reason=f"the process died by {name}", signal=name
    )


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
