"""``current_job()``: what a task can know about the job that it runs for."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import ContextVar, Token
    from typing import Any

    ReportProgress = Callable[[float, str, Any], None]


class SoftTimeout(Exception):
    """Raised in a task at its ``soft_timeout``: clean up and end, the deadline is near."""


class CurrentJob:
    """The job whose attempt this process is running."""

    __slots__ = ("_deadline", "_report", "attempt", "id", "task", "timeout", "token")

    def __init__(  # noqa: PLR0917 - a sandbox makes one of every frame, and keywords cost
        self,
        job_id: str,
        task: str,
        attempt: int = 1,
        token: str = "",
        timeout: float = 0.0,
        deadline: float = 0.0,
        report: ReportProgress | None = None,
    ) -> None:
        self.id = job_id
        self.task = task
        self.attempt = attempt  # 1 for the first run of this job
        self.token = token  # grows with every attempt: a fencing token for idempotent effects
        self.timeout = timeout  # seconds
        self._deadline = deadline
        self._report = report

    def remaining(self) -> float:
        """Seconds until this attempt is killed; never below 0."""
        return max(0.0, self._deadline - time.monotonic())

    def progress(self, fraction: float, message: str = "", data: Any = None) -> None:
        """Report how far the task is: ``fraction`` from 0 to 1, a line of text, any plain data.

        Does nothing for tasks declared without ``progress=True``. Raises ``ValueError`` for a
        fraction outside 0 to 1.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"progress is a fraction from 0 to 1, not {fraction!r}")
        if self._report is not None:
            self._report(float(fraction), message, data)

    def __repr__(self) -> str:
        """Such as ``<CurrentJob 01J... app.tasks.add attempt 1>``."""
        return f"<CurrentJob {self.id} {self.task} attempt {self.attempt}>"


# A thread that a task starts inherits no context, so the jobs of the whole process are kept as
# well. In a sandbox that is one; only a node that runs tasks inline can have several.
_running: list[CurrentJob] = []
# The variable is made when a job first runs inline: sandboxes do without its library.
_current: ContextVar[CurrentJob] | None = None


def current_job() -> CurrentJob:
    """The job that this code runs for. Raises ``LookupError`` outside of a job."""
    job = _current.get(None) if _current is not None else None
    if job is not None:
        return job
    if entered:
        _running.append(entered.pop()())
    if len(_running) == 1:
        return _running[0]
    raise LookupError("no job runs here: current_job() is for code that a task calls")


# The one job of a sandbox, for its whole life: what builds it when it is first asked for. Most
# tasks never ask, and in a fresh sandbox every object costs.
entered: list[Callable[[], CurrentJob]] = []


class running:  # noqa: N801 - reads as a word: ``with running(job):``
    """Make ``job`` the current one for the length of a block."""

    __slots__ = ("_job", "_token")
    _token: Token[CurrentJob]

    def __init__(self, job: CurrentJob) -> None:
        self._job = job

    def __enter__(self) -> CurrentJob:
        global _current  # noqa: PLW0603 - one variable to a process
        if _current is None:
            from contextvars import ContextVar

            _current = ContextVar("fumehood.current_job")
        _running.append(self._job)
        self._token = _current.set(self._job)
        return self._job

    def __exit__(self, *exc: object) -> None:
        if _current is not None:
            _current.reset(self._token)
        _running.remove(self._job)
