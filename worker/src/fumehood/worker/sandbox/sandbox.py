"""``Sandbox``: run calls in fresh processes without any broker."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from fumehood.common.errors import ConfigurationError
from fumehood.common.limits import Limits
from fumehood.common.outcome import Outcome
from fumehood.common.settings import Settings, load_settings
from fumehood.common.task import Call, Profile
from fumehood.worker.sandbox.job import OnProgress
from fumehood.worker.sandbox.manager import SandboxManager
from fumehood.worker.sandbox.options import make_job
from fumehood.worker.sandbox.profiles import Profiles
from fumehood.worker.sandbox.protection import make_manager


class Sandbox:
    """``slots`` sandboxes at a time for the tasks of ``modules``.

    ``async with Sandbox(modules=["app.tasks"], slots=4) as sandbox:`` then
    ``outcome = await sandbox.run(add.call(2, 3), timeout=5.0)``. ``profile`` is the least that any
    job runs under; tasks declared ``untrusted`` always do. Belongs to one event loop.
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
        self._profile: Profile = profile
        self._settings = settings or load_settings()
        self._ids = itertools.count(1)
        self._profiles = Profiles(make_manager(self._settings, modules, slots), profile)

    async def start(self) -> None:
        """Import the modules and park sandboxes. Raises ``SandboxUnavailable``."""
        await self._profiles.start()

    async def stop(self) -> None:
        """Kill what runs and leave no process behind. Idempotent."""
        await self._profiles.stop()

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
        return self._profiles.managers[self._profile]

    @property
    def profiles(self) -> Profiles:
        """The managers of both profiles, where there are two."""
        return self._profiles

    async def run(
        self,
        call: Call[Any],
        timeout: float | None = None,
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
        job = make_job(
            call,
            self._settings,
            job_id or f"local-{next(self._ids)}",
            timeout=timeout,
            limits=limits,
            on_progress=on_progress,
        )
        return await self._profiles.run(job)
