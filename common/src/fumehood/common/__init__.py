"""The vocabulary that every part of Fumehood shares: tasks, jobs, outcomes, settings, the wire.

Names are imported when they are first used (PEP 562), so that a sandbox never pays for pydantic.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fumehood.common.context import CurrentJob as CurrentJob
    from fumehood.common.context import SoftTimeout as SoftTimeout
    from fumehood.common.context import current_job as current_job
    from fumehood.common.errors import BrokerUnavailable as BrokerUnavailable
    from fumehood.common.errors import ClientClosed as ClientClosed
    from fumehood.common.errors import ConfigurationError as ConfigurationError
    from fumehood.common.errors import EnqueueError as EnqueueError
    from fumehood.common.errors import FumehoodError as FumehoodError
    from fumehood.common.errors import InvalidArguments as InvalidArguments
    from fumehood.common.errors import JobCancelled as JobCancelled
    from fumehood.common.errors import JobCrashed as JobCrashed
    from fumehood.common.errors import JobError as JobError
    from fumehood.common.errors import JobExited as JobExited
    from fumehood.common.errors import JobExpired as JobExpired
    from fumehood.common.errors import JobFailed as JobFailed
    from fumehood.common.errors import JobLimitExceeded as JobLimitExceeded
    from fumehood.common.errors import JobLost as JobLost
    from fumehood.common.errors import JobPolicyViolation as JobPolicyViolation
    from fumehood.common.errors import JobProtocolError as JobProtocolError
    from fumehood.common.errors import JobRejected as JobRejected
    from fumehood.common.errors import JobStartFailed as JobStartFailed
    from fumehood.common.errors import JobTimedOut as JobTimedOut
    from fumehood.common.errors import PayloadTooLarge as PayloadTooLarge
    from fumehood.common.errors import QueueFull as QueueFull
    from fumehood.common.errors import SandboxUnavailable as SandboxUnavailable
    from fumehood.common.errors import UnknownQueue as UnknownQueue
    from fumehood.common.errors import UnknownTask as UnknownTask
    from fumehood.common.limits import Limits as Limits
    from fumehood.common.outcome import Blame as Blame
    from fumehood.common.outcome import ErrorInfo as ErrorInfo
    from fumehood.common.outcome import Outcome as Outcome
    from fumehood.common.outcome import Status as Status
    from fumehood.common.outcome import Usage as Usage
    from fumehood.common.settings import Settings as Settings
    from fumehood.common.settings import load_settings as load_settings
    from fumehood.common.task import Call as Call
    from fumehood.common.task import Task as Task
    from fumehood.common.task import registry as registry
    from fumehood.common.task import task as task

_MODULES = {
    "context": "CurrentJob SoftTimeout current_job",
    "errors": (
        "BrokerUnavailable ClientClosed ConfigurationError EnqueueError FumehoodError "
        "InvalidArguments JobCancelled JobCrashed JobError JobExited JobExpired JobFailed "
        "JobLimitExceeded JobLost JobPolicyViolation JobProtocolError JobRejected JobStartFailed "
        "JobTimedOut PayloadTooLarge QueueFull SandboxUnavailable UnknownQueue UnknownTask"
    ),
    "limits": "Limits",
    "outcome": "Blame ErrorInfo Outcome Status Usage",
    "settings": "Settings load_settings",
    "task": "Call Task registry",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [*_HOME, "task"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


# ``task`` is the name of a function and of a submodule. Importing the submodule would put the
# module in the function's place, so the function is put there first and for good.
from fumehood.common.task import task as task  # noqa: E402
