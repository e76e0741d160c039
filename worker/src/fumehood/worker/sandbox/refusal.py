"""Jobs that never get a sandbox, and what they are told."""

from __future__ import annotations

from collections.abc import Collection

from fumehood.common.errors import SandboxUnavailable
from fumehood.common.outcome import Blame, Outcome, Status
from fumehood.worker.sandbox.job import Job


class NoSandbox(SandboxUnavailable):
    """No sandbox for a job that waits for one, and the stage at which they fail."""

    def __init__(self, why: str, stage: str) -> None:
        super().__init__(why)
        self.stage = stage


def not_started(job: Job, exc: NoSandbox) -> Outcome:
    """The outcome of a job that got no sandbox."""
    return Outcome(
        Status.START_FAILED,
        job.job_id,
        job.task,
        Blame.INFRA,
        str(exc),
        stage=exc.stage,
        attempt=job.attempt,
    )


def unknown_task(job: Job, known: Collection[str]) -> Outcome:
    """The outcome of a job whose task no sandbox here knows."""
    reason = (
        f"no task is named {job.task!r} here: this node knows {', '.join(sorted(known)) or 'none'}"
    )
    return Outcome(
        Status.REJECTED, job.job_id, job.task, Blame.POLICY, reason[:2000], attempt=job.attempt
    )
