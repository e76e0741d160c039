"""What a sandbox is asked to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fumehood.common.limits import Limits
from fumehood.common.task import Profile

#: Called with (fraction from 0 to 1, message, data) for each report that gets through.
OnProgress = Callable[[float, str, Any], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt, as the manager gets it: arguments encoded, bounds settled."""

    job_id: str
    task: str
    arguments: bytes
    timeout: float  # seconds, from the start of the task's code
    result_max: int  # bytes of the encoded value
    output_max: int  # bytes kept of stdout and of stderr, each
    soft_timeout: float | None = None  # seconds until ``SoftTimeout`` is raised in the task
    limits: Limits = Limits()  # noqa: RUF009 - it is frozen
    profile: Profile = "trusted"  # the least that it runs under; its task may ask for more
    attempt: int = 1
    token: str = ""
    on_progress: OnProgress | None = None
