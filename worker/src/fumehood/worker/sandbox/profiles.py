"""Both profiles behind one runner: a manager for each that is needed, and a refusal for the rest.

A job runs as ``untrusted`` when its task says so, or when the operator says so of the queue that it
came from: whoever asks for more glass gets it. Where the host cannot hold what untrusted jobs are
promised, they are refused with the reason, and trusted ones run as before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from fumehood.common.errors import SandboxUnavailable
from fumehood.common.outcome import Blame, Outcome, Status
from fumehood.common.task import Profile
from fumehood.worker.sandbox.declared import Declared
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.manager import SandboxManager
from fumehood.worker.sandbox.refusal import NoSandbox, not_started
from fumehood.worker.sandbox.verdict import KillReason

log = logging.getLogger("fumehood.sandbox")


class Profiles:
    """Runs jobs by their profile. ``floor`` is the least glass that any job gets."""

    def __init__(
        self, make: Callable[[Profile], SandboxManager], floor: Profile = "trusted"
    ) -> None:
        self._make = make
        self._floor: Profile = floor
        self._managers: dict[Profile, SandboxManager] = {floor: make(floor)}
        self._refusal = ""  # why untrusted jobs are not run here
        self._stopped = False

    async def start(self, *, untrusted_too: bool = False) -> None:
        """Start what is needed. Raises ``SandboxUnavailable``.

        With the floor at ``trusted``, untrusted jobs that cannot be run are refused one by one;
        with ``untrusted_too`` their manager is started though no task is declared so.
        """
        self._stopped = False
        if self._floor == "untrusted":
            await self._open("untrusted")
            return
        trusted = await self._open("trusted")
        wanted = any(task.profile == "untrusted" for task in trusted.tasks.values())
        if wanted or untrusted_too:
            try:
                await self._open("untrusted")
            except SandboxUnavailable as exc:
                self._refusal = str(exc)
                log.error("untrusted jobs are refused on this host", extra={"cause": exc})

    async def _open(self, profile: Profile) -> SandboxManager:
        if self._stopped:  # while another one was being started
            raise SandboxUnavailable("the sandboxes were stopped")
        if profile not in self._managers:
            self._managers[profile] = self._make(profile)
        manager = self._managers[profile]
        try:
            await manager.start()
        except BaseException:
            if profile != self._floor:
                del self._managers[profile]
            raise
        return manager

    async def stop(self) -> None:
        """Kill what runs and leave no process behind. Idempotent."""
        self._stopped = True
        for manager in list(self._managers.values()):
            await manager.stop()

    @property
    def refusal(self) -> str:
        """Why untrusted jobs are refused here; empty when they are not."""
        return self._refusal

    @property
    def managers(self) -> Mapping[Profile, SandboxManager]:
        """What runs jobs, by profile."""
        return self._managers

    @property
    def tasks(self) -> Mapping[str, Declared]:
        """The tasks that can be run, by name."""
        for manager in self._managers.values():
            return manager.tasks
        return {}

    def profile_of(self, job: Job) -> Profile:
        """The glass that a job gets."""
        declared = self.tasks.get(job.task)
        asked = {job.profile, self._floor, declared.profile if declared is not None else "trusted"}
        return "untrusted" if "untrusted" in asked else "trusted"

    async def run(self, job: Job) -> Outcome:
        """Run one attempt; its outcome says whatever went wrong."""
        profile = self.profile_of(job)
        manager = self._managers.get(profile)
        if manager is not None:
            return await manager.run(job)
        if profile == "untrusted" and self._managers:
            return _refused(job, self._refusal or "it was not started with untrusted jobs in mind")
        return not_started(job, NoSandbox("the sandbox manager was stopped", "stopped"))

    def cancel(self, job_id: str) -> bool:
        """Kill the sandbox that runs this job. False when none does."""
        return any(manager.cancel(job_id) for manager in self._managers.values())

    def kill_all(self, reason: KillReason) -> None:
        """Begin to kill every job that runs; each still gets its outcome."""
        for manager in self._managers.values():
            manager.kill_all(reason)

    def disown(self) -> None:
        """In a fork of this process: let go of what would keep sandboxes alive after the parent."""
        for manager in self._managers.values():
            manager.disown()


def _refused(job: Job, why: str) -> Outcome:
    reason = f"this job is untrusted, and this node runs no such jobs: {why}"
    return Outcome(
        Status.REJECTED, job.job_id, job.task, Blame.POLICY, reason[:2000], attempt=job.attempt
    )
