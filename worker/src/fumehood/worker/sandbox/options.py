"""From settings and calls to what the manager takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fumehood.common.arguments import encode_arguments
from fumehood.common.limits import Limits
from fumehood.common.settings import Settings
from fumehood.common.task import Call, Profile, check_timeout
from fumehood.worker.sandbox.job import Job, OnProgress
from fumehood.worker.sandbox.manager_config import DEFAULT_TMP, ManagerConfig
from fumehood.worker.sandbox.renewal import Lifetime


def manager_config(
    settings: Settings, modules: Sequence[str], slots: int, profile: Profile = "trusted"
) -> ManagerConfig:
    """What the settings say about sandboxes."""
    return ManagerConfig(
        modules=tuple(modules),
        slots=slots,
        ctx=settings.sandbox_ctx,
        start_timeout=settings.sandbox_start_timeout,
        env=settings.sandbox_env,
        disabled=frozenset(settings.sandbox_disable),
        profile=profile,
        tmp=settings.max_tmp or DEFAULT_TMP,
        lifetime=Lifetime(settings.sandbox_max_forks, settings.sandbox_max_age),
        watch_code=settings.sandbox_watch_code,
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
    merged = merge_limits(limits or Limits(), options.limits, settings.limits)
    return Job(
        job_id=job_id,
        task=call.task.name,
        arguments=encode_arguments(call, settings.max_arguments),
        timeout=check_timeout(seconds, settings.max_timeout),
        soft_timeout=options.soft_timeout,
        result_max=merged.result or 0,
        output_max=merged.output or 0,
        limits=merged,
        profile=options.profile,
        on_progress=on_progress,
    )


def merge_limits(call: Limits, task: Limits, cap: Limits) -> Limits:
    """What the call asks for, else what the task declares, never above the operator's cap.

    The cap is also what a job gets that neither of them says anything about.
    """
    asked = {**task.to_wire(), **call.to_wire()}
    return Limits.from_wire(asked).tightened(cap)
