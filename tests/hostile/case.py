"""Cases as data: what is called, and what must become of it where.

An expectation is asked for its ``complaints`` about an outcome; none means that it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fumehood.common import Blame, Limits, Outcome, Status
from fumehood.common.errors import DecodeError
from fumehood.common.task import Call
from hostile.outside import Outside

Profile = Literal["trusted", "untrusted"]

#: What a host, a user or a mask can take away; ``root``, and the ids of slots that only root can
#: give, is what an ordinary user lacks.
MECHANISMS = frozenset(
    {
        "cgroup", "cgroup-memory", "cgroup-pids", "landlock", "namespaces", "pidfd", "root",
        "seccomp",
    }
)  # fmt: skip

_BLAMES = {
    Status.SUCCEEDED: Blame.NOBODY,
    Status.FAILED: Blame.TASK,
    Status.TIMED_OUT: Blame.LIMIT,
    Status.LIMIT_EXCEEDED: Blame.LIMIT,
    Status.POLICY_VIOLATION: Blame.POLICY,
    Status.CRASHED: Blame.TASK,
    Status.EXITED: Blame.TASK,
    Status.START_FAILED: Blame.INFRA,
    Status.PROTOCOL_ERROR: Blame.TASK,
    Status.REJECTED: Blame.POLICY,
}


#: A complaint that is none where others had the cores for the 50 ms that a dump is given.
NO_STACK = "there is no stack"


@dataclass(frozen=True, slots=True)
class Expect:
    """One outcome. What is None or empty is not looked at; ``where`` maps a name to a check."""

    status: Status
    blame: Blame | None = None  # by default the status's own
    limit: str | None = None
    signal: str | None = None
    exit_code: int | None = None
    error: str = ""  # the end of the exception's type name
    stack: str = ""  # what the stack must hold
    where: Mapping[str, Callable[[Outcome], object]] = field(default_factory=dict)

    def complaints(self, outcome: Outcome) -> list[str]:
        """What is not as it must be."""
        if outcome.status is not self.status:
            return [f"expected {self.status.value}, not {describe(outcome)}"]
        blame = self.blame or _BLAMES[self.status]
        wanted: dict[str, object] = {
            "blame": blame,
            "limit": self.limit,
            "signal": self.signal,
            "exit_code": self.exit_code,
        }
        found = [
            f"{name} is {getattr(outcome, name)!r}, not {value!r}: {describe(outcome)}"
            for name, value in wanted.items()
            if value is not None and getattr(outcome, name) != value
        ]
        if self.error and (outcome.error is None or not outcome.error.type.endswith(self.error)):
            found.append(f"the error is no {self.error}: {describe(outcome)}")
        if self.stack and not outcome.stack:
            found.append(NO_STACK)
        elif self.stack not in outcome.stack:
            found.append(f"no {self.stack!r} in the stack {outcome.stack[-600:]!r}")
        unmet = [name for name, holds in self.where.items() if not holds(outcome)]
        return found + [f"not so: {name}: {describe(outcome)}" for name in unmet]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of several outcomes, where which of them comes first is a race or the host's choice."""

    choices: tuple[Expect, ...]

    def complaints(self, outcome: Outcome) -> list[str]:
        """What is not as it must be, by the choice that comes nearest."""
        return min((choice.complaints(outcome) for choice in self.choices), key=_seriousness)


def _seriousness(complaints: list[str]) -> tuple[bool, int]:
    return any(each.startswith("expected") for each in complaints), len(complaints)


@dataclass(frozen=True, slots=True)
class NotRun:
    """A case that would harm whoever runs it where nothing confines it, or that means nothing."""

    why: str


Expectation = Expect | AnyOf
MakeCall = Callable[[Outside], Call[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A hostile job: its call, its limits, and what must become of it.

    ``untrusted`` is ``trusted`` where it is not given. ``without`` holds what is expected when a
    mechanism is lost: its key is a mechanism, ``a+b`` for both, ``profile:a`` for one profile; the
    first key that is lost counts. ``late`` is in seconds after the timeout.
    """

    id: str
    call: Call[Any] | MakeCall
    trusted: Expectation | NotRun
    untrusted: Expectation | NotRun | None = None
    without: Mapping[str, Expectation | NotRun] = field(default_factory=dict)
    limits: Limits | None = None
    timeout: float = 10.0  # seconds
    late: float = 1.0
    arguments: bytes | None = None  # in place of the call's own, as a forged message has them
    loses_zygote: frozenset[str] = (
        frozenset()
    )  # without which mechanisms, or under which profile, it may
    alone: bool = False  # whether neighbours would be slowed by it, or it by them
    after: Callable[[Outside], str] | None = None  # a complaint about what is left, or ""
    tidy: Callable[[Outside], None] | None = None  # takes away what was a trusted job's to leave

    @property
    def needs(self) -> frozenset[str]:
        """The mechanisms without which something else is expected."""
        return frozenset(part for key in self.without for part in _parts(key)) | (
            self.loses_zygote - {"trusted", "untrusted"}
        )

    def expectation(self, profile: Profile, lost: frozenset[str]) -> Expectation | NotRun:
        """What must become of it under a profile where some mechanisms are lost."""
        for key, expected in self.without.items():
            if key.partition(":")[0] in (profile, key) and _parts(key) <= lost:
                return expected
        if profile == "untrusted" and self.untrusted is not None:
            return self.untrusted
        return self.trusted


def _parts(key: str) -> set[str]:
    return set(key.rpartition(":")[2].split("+"))


def describe(outcome: Outcome) -> str:
    """An outcome in one line."""
    parts = [outcome.status.value, outcome.blame.value, outcome.reason]
    if outcome.error is not None:
        parts.append(f"{outcome.error.type}: {outcome.error.message[:200]}")
    if outcome.ok:
        parts.append(_short(outcome))
    return ", ".join(part for part in parts if part)


def _short(outcome: Outcome) -> str:
    try:
        return repr(outcome.value)[:300]
    except (
        ValueError,
        DecodeError,
    ) as exc:  # a number of thousands of digits, or what cannot be decoded
        return f"<{exc}>"


# --- the usual expectations -----------------------------------------------------------------


def value(wanted: Any) -> Expect:
    """It returned this value."""
    return Expect(Status.SUCCEEDED, where={f"the value is {wanted!r}": lambda o: o.value == wanted})


def one_of(*wanted: Any) -> Expect:
    """It returned one of these values."""
    return Expect(
        Status.SUCCEEDED, where={f"the value is of {wanted!r}": lambda o: o.value in wanted}
    )


def succeeded(**where: Callable[[Outcome], object]) -> Expect:
    """It returned whatever it did."""
    return Expect(Status.SUCCEEDED, where={k.replace("_", " "): v for k, v in where.items()})


def failed(error: str = "", **where: Callable[[Outcome], object]) -> Expect:
    """It raised."""
    named = {name.replace("_", " "): holds for name, holds in where.items()}
    return Expect(Status.FAILED, error=error, where=named)


def timed_out(stack: str = "") -> Expect:
    """It was killed at its deadline."""
    return Expect(Status.TIMED_OUT, stack=stack)


def exceeded(limit: str) -> Expect:
    """It went beyond a limit."""
    return Expect(Status.LIMIT_EXCEEDED, limit=limit)


def crashed(signal: str, stack: str = "") -> Expect:
    """It died by a signal."""
    blame = Blame.INFRA if signal == "SIGKILL" else Blame.TASK
    return Expect(Status.CRASHED, blame=blame, signal=signal, stack=stack)


def exited(code: int) -> Expect:
    """It ended without a result."""
    return Expect(Status.EXITED, exit_code=code)


REFUSED = ("EPERM", "EACCES", "ENOSYS", "EROFS", "ENOENT")
PROTOCOL = Expect(Status.PROTOCOL_ERROR)
VIOLATION = Expect(Status.POLICY_VIOLATION, signal="SIGSYS")
denied = one_of(*REFUSED)
