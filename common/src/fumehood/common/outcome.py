"""What became of a job: the one value that a node sends and a producer receives.

Statuses are final. Who moves a job there stands beside each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from fumehood.common import errors


class Status(StrEnum):
    """How a job or an attempt ended."""

    SUCCEEDED = "succeeded"  # the sandbox manager, on a complete result and exit 0
    FAILED = "failed"  # the sandbox manager, when the task raised or its value cannot be carried
    TIMED_OUT = "timed_out"  # the sandbox manager, at the deadline
    CANCELLED = "cancelled"  # the executor before the start, the sandbox manager after it
    LIMIT_EXCEEDED = "limit_exceeded"  # the sandbox manager, by the kernel's or its own count
    POLICY_VIOLATION = "policy_violation"  # the sandbox manager, on SIGSYS
    CRASHED = "crashed"  # the sandbox manager, on death by a signal
    EXITED = "exited"  # the sandbox manager, on an exit without a result
    START_FAILED = "start_failed"  # the sandbox manager, when no sandbox became ready
    PROTOCOL_ERROR = "protocol_error"  # the sandbox manager, on frames that no honest child sends
    EXPIRED = "expired"  # the executor, when a job arrives after its ``expires``
    REJECTED = "rejected"  # the executor, when a message cannot or must not be run
    LOST = "lost"  # the executor, when the delivery limit is reached


class Blame(StrEnum):
    """Who caused an outcome; retries are decided by it."""

    NOBODY = "nobody"
    TASK = "task"
    LIMIT = "limit"
    POLICY = "policy"
    INFRA = "infra"


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt cost."""

    wall: float = 0.0  # seconds from the start of the task's code to the end of its process
    cpu: float = 0.0  # seconds of user and system time of the sandbox and what it started
    setup: float = 0.0  # seconds from dispatch to the start of the task's code
    memory: int = 0  # bytes; the most that it held at one time, 0 where the host does not count


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An exception as text. It is never rebuilt: nothing is imported or unpickled by name."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on a job, with everything that was seen of its last attempt.

    ``value_bytes`` is the encoded value as the sandbox sent it: nodes pass it on unread and the
    producer decodes it with ``value``. Times are seconds; ``finished_at`` is a UNIX time.
    """

    status: Status
    job_id: str = ""
    task: str = ""
    blame: Blame = Blame.NOBODY
    reason: str = ""
    value_bytes: bytes | None = None
    error: ErrorInfo | None = None
    stack: str = ""  # the Python stack at the kill or crash, innermost frame first
    exit_code: int | None = None
    signal: str | None = None  # such as "SIGSEGV"
    limit: str | None = None  # which limit, for LIMIT_EXCEEDED and TIMED_OUT
    limit_value: float | None = None  # the limit that was exceeded: bytes, seconds or a count
    peak: float | None = None  # how far it got, in the same unit, where that is known
    stage: str | None = None  # which step failed, for START_FAILED
    stdout: bytes = b""
    stderr: bytes = b""
    output_dropped: int = 0  # bytes of output beyond the cap, read and thrown away
    leaked_processes: int = 0  # processes that outlived the task's own, all killed
    usage: Usage = field(default_factory=Usage)
    attempt: int = 1
    profile: str = ""  # "trusted" or "untrusted"; empty when it did not run
    guarantees: tuple[
        str, ...
    ] = ()  # what was enforced while it ran, as ``fumehood doctor`` names it
    node: str = ""
    finished_at: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the task returned a value."""
        return self.status is Status.SUCCEEDED

    @property
    def value(self) -> Any:
        """The decoded value; None unless ``ok``. Raises ``DecodeError`` for damaged bytes."""
        if self.value_bytes is None:
            return None
        from fumehood.common.codec import decode

        return decode(self.value_bytes)

    def unwrap(self) -> Any:
        """Return the value, or raise the ``JobError`` that fits the status."""
        if self.ok:
            return self.value
        raise self.as_error()

    def as_error(self) -> errors.JobError:
        """The ``JobError`` for this outcome; only for outcomes that are not ``ok``."""
        if self.ok:
            raise ValueError("a job that succeeded has no error")
        return _ERROR_OF[self.status](self.describe(), self)

    def describe(self) -> str:
        """One sentence for logs and error messages."""
        what = self.reason or self.status.value.replace("_", " ")
        if self.error is not None:
            what = (
                f"{self.error.type}: {self.error.message}"
                if self.error.message
                else self.error.type
            )
        return f"{self.task or 'job'} [{self.job_id}]: {what}" if self.job_id else what

    def of_job(self, **facts: Any) -> Outcome:
        """The same verdict with what only the caller knows (job_id, task, attempt, node, ...)."""
        return replace(self, **facts)


_ERROR_OF: dict[Status, type[errors.JobError]] = {
    Status.FAILED: errors.JobFailed,
    Status.TIMED_OUT: errors.JobTimedOut,
    Status.CANCELLED: errors.JobCancelled,
    Status.LIMIT_EXCEEDED: errors.JobLimitExceeded,
    Status.POLICY_VIOLATION: errors.JobPolicyViolation,
    Status.CRASHED: errors.JobCrashed,
    Status.EXITED: errors.JobExited,
    Status.START_FAILED: errors.JobStartFailed,
    Status.PROTOCOL_ERROR: errors.JobProtocolError,
    Status.EXPIRED: errors.JobExpired,
    Status.REJECTED: errors.JobRejected,
    Status.LOST: errors.JobLost,
}
