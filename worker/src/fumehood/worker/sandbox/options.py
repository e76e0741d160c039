"""From settings and calls to what the manager takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fumehood.common.arguments import encode_arguments
from fumehood.common.errors import ConfigurationError
from fumehood.common.limits import Limits
from fumehood.common.settings import Settings
from fumehood.common.task import Call, Profile, check_timeout
from fumehood.worker.sandbox.job import Job, OnProgress
from fumehood.worker.sandbox.manager import ManagerConfig


def manager_config(settings: Settings, modules: Sequence[str], slots: int) -> ManagerConfig:
    """What the settings say about sandboxes."""
    return ManagerConfig(
        modules=tuple(modules),
        slots=slots,
        ctx=settings.sandbox_ctx,
        start_timeout=settings.sandbox_start_timeout,
        env=settings.sandbox_env,
        disabled=frozenset(settings.sandbox_disable),
    )


def make_job(
    call: Call[Any],
    settings: Settings,
    job_id: str,
    *,
    timeout: float | None = None,
    limits: Limits | None = None,
    on_progress: OnProgress | None = None,
) -> Job:
    """A call as a job of this process. Raises ``InvalidArguments``, ``PayloadTooLarge``."""
    options = call.task.options
    seconds = (
        timeout if timeout is not None else options.timeout or settings.sandbox_default_timeout
    )
    return Job(
        job_id=job_id,
        task=call.task.name,
        arguments=encode_arguments(call, settings.max_arguments),
        timeout=check_timeout(seconds, settings.max_timeout),
        result_max=smallest(
            settings.max_result, options.limits.result, limits.result if limits else None
        ),
        output_max=smallest(
            settings.max_output, options.limits.output, limits.output if limits else None
        ),
        on_progress=on_progress,
    )


def refuse_untrusted(profile: Profile) -> None:
    """Raise ``ConfigurationError`` for a profile whose guarantees nothing here enforces yet."""
    if profile == "untrusted":
        raise ConfigurationError(
            "profile 'untrusted' cannot be enforced by this version: "
            "run only code that you trust not to attack"
        )


def smallest(cap: int, *bounds: int | str | None) -> int:
    """The smallest of the bounds that are set; ``Limits`` has made numbers of them."""
    return min((cap, *(bound for bound in bounds if isinstance(bound, int))))
