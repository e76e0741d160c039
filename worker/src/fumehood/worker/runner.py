"""What the executor needs of whatever runs jobs: the sandbox manager, or the inline runner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fumehood.common.outcome import Outcome
from fumehood.worker.sandbox.declared import Declared
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.verdict import KillReason


class Runner(Protocol):
    """Runs jobs, a bounded number at a time, and gives each an outcome."""

    @property
    def tasks(self) -> Mapping[str, Declared]:
        """The tasks that it can run, by name."""
        ...

    async def start(self) -> None:
        """Get ready. Raises ``SandboxUnavailable``."""
        ...

    async def stop(self) -> None:
        """End what runs and leave nothing behind. Idempotent."""
        ...

    async def run(self, job: Job) -> Outcome:
        """Run one attempt."""
        ...

    def cancel(self, job_id: str) -> bool:
        """End the attempt of this job. False when none runs."""
        ...

    def kill_all(self, reason: KillReason) -> None:
        """Begin to end every attempt; each still gets its outcome."""
        ...
