"""``Sandbox``: run calls in fresh processes without any broker."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from fumehood.common.envelope import encode_arguments
from fumehood.common.errors import ConfigurationError
from fumehood.common.limits import Limits
from fumehood.common.outcome import Outcome
from fumehood.common.settings import Settings, load_settings
from fumehood.common.task import Call, Profile, check_timeout
from fumehood.worker.sandbox.job import Job, OnProgress
from fumehood.worker.sandbox.manager import ManagerConfig, SandboxManager


class Sandbox:
    """``slots`` sandboxes at a time for the tasks of ``modules``.

    ``async with Sandbox(modules=["app.tasks"], slots=4) as sandbox:`` then
    ``outcome = await sandbox.run(add.call(2, 3), timeout=5.0)``. Belongs to one event loop.
    """

    def __init__(
        self,
        modules: Sequence[str],
        slots: int = 1,
        profile: Profile = "trusted",
        *,
        settings: Settings | None = None,
    ) -> None:
        if slots < 1:
            raise ConfigurationError(f"a sandbox needs at least 1 slot, not {slots}")
        refuse_untrusted(profile)
        self._settings = settings or load_settings()
        self._ids = itertools.count(1)
        self._manager = SandboxManager(manager_config(self._settings, modules, slots))

    async def start(self) -> None:
        """Import the modules and park sandboxes. Raises ``SandboxUnavailable``."""
        await self._manager.start()

    async def stop(self) -> None:
        """Kill what runs and leave no process behind. Idempotent."""
        await self._manager.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def manager(self) -> SandboxManager:
        """What does the work; for tests and benchmarks."""
        return self._manager

    async def run(
        self,
        call: Call[Any],
        timeout: float | None = None,  # noqa: ASYNC109 - the job's, enforced by killing it
        *,
        job_id: str | None = None,
        limits: Limits | None = None,
        on_progress: OnProgress | None = None,
    ) -> Outcome:
        """Run a call and return its outcome, whatever becomes of it.

        ``timeout`` is in seconds from the start of the task's code; by default the task's own, else
        ``sandbox_default_timeout``. Raises ``InvalidArguments`` or ``PayloadTooLarge`` for what
        cannot be run at all.
        """
        refuse_untrusted(call.task.options.profile)
        job = make_job(call, self._settings, job_id or f"local-{next(self._ids)}", timeout, limits, on_progress)
        return await self._manager.run(job)


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
    timeout: float | None,
    limits: Limits | None,
    on_progress: OnProgress | None = None,
) -> Job:
    """A call as a job of this process. Raises ``InvalidArguments``, ``PayloadTooLarge``."""
    options = call.task.options
    seconds = timeout if timeout is not None else options.timeout or settings.sandbox_default_timeout
    bounds = (limits or Limits()).tightened(options.limits).tightened(settings.limits)
    assert isinstance(bounds.result, int) and isinstance(bounds.output, int)
    return Job(
        job_id=job_id,
        task=call.task.name,
        arguments=encode_arguments(call, settings.max_arguments),
        timeout=check_timeout(seconds, settings.max_timeout),
        result_max=bounds.result,
        output_max=bounds.output,
        on_progress=on_progress,
    )


def refuse_untrusted(profile: Profile) -> None:
    """Raise ``ConfigurationError`` for a profile whose guarantees nothing here enforces yet."""
    if profile == "untrusted":
        raise ConfigurationError(
            "profile 'untrusted' cannot be enforced by this version: run only code that you trust not to attack"
        )
