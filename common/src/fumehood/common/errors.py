"""Every error that Fumehood raises on purpose.

Two trees, by the moment at which they can reach a caller: ``EnqueueError`` before a job was
accepted, ``JobError`` after. ``JobError`` always carries the outcome that it was made from.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fumehood.common.outcome import Outcome


class FumehoodError(Exception):
    """Base of every error that Fumehood raises on purpose."""


class ConfigurationError(FumehoodError):
    """A setting, a task declaration or a command line cannot be used; the message says why."""


class UnknownTask(FumehoodError):
    """No task of that name is registered: import the module that declares it."""


class SandboxUnavailable(FumehoodError):
    """No sandbox could be started; the message names the stage and the cause."""


class MalformedMessage(FumehoodError):
    """A message does not follow ``docs/protocol.md``; the message names the field."""


class DecodeError(MalformedMessage):
    """Bytes are not a value that the codec can read."""


class ClientClosed(FumehoodError):
    """The client was closed before this job's outcome arrived; the job itself goes on."""


# --- before a job is accepted ---------------------------------------------------------------


class EnqueueError(FumehoodError):
    """The job was not accepted, or nobody knows whether it was (see ``BrokerUnavailable``)."""


class BrokerUnavailable(EnqueueError):
    """The broker cannot be reached or did not confirm in time.

    A job that was already sent may still run; enqueue again under the same ``job_id`` and its
    outcome is delivered once.
    """


class QueueFull(EnqueueError):
    """The queue is at its bound and refused the job: retry later, or add nodes."""


class UnknownQueue(EnqueueError):
    """No such queue on the broker: start a node that serves it, or set ``declare_queues``."""


class PayloadTooLarge(EnqueueError):
    """The encoded arguments exceed ``max_arguments``: pass a reference to the data instead."""


class InvalidArguments(EnqueueError, ValueError):
    """A call, an option or a value cannot be carried; ``path`` says which: ``args[0]['when']``."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


# --- after a job was accepted ---------------------------------------------------------------


class JobError(FumehoodError):
    """A job ended without a value. ``outcome`` tells all that is known about it."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


class JobFailed(JobError):
    """The task raised; ``outcome.error`` has the exception's type name, message and traceback."""


class JobTimedOut(JobError, TimeoutError):
    """The attempt was killed at the deadline that its ``timeout`` set."""


class JobCrashed(JobError):
    """The task's process died by a signal."""


class JobExited(JobError):
    """The task's process ended without handing over a result."""


class JobLimitExceeded(JobError):
    """The task went over one of its limits."""


class JobPolicyViolation(JobError):
    """The task did what its profile forbids."""


class JobCancelled(JobError):
    """The job was cancelled before or while it ran."""


class JobExpired(JobError):
    """The job was not started before ``expires``."""


class JobStartFailed(JobError):
    """The sandbox could not be set up; the task's code never ran."""


class JobProtocolError(JobError):
    """The task's process broke the protocol with its manager."""


class JobRejected(JobError):
    """A node refused the job: unknown task, unreadable message, or a forbidden option."""


class JobLost(JobError):
    """The job was given up after too many attempts that ended without a verdict."""
