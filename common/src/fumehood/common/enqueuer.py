"""What a task needs of a client in order to enqueue itself: the client's shape, seen from here."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime
from typing import Protocol, TypeVar

from fumehood.common.limits import Limits
from fumehood.common.outcome import Outcome
from fumehood.common.task import Call

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Handle(Protocol[R_co]):
    """A job that a broker accepted (``fumehood.client.JobHandle``, seen from here)."""

    @property
    def id(self) -> str:
        """The job's id."""
        ...

    def done(self) -> bool:
        """Whether the outcome has arrived."""
        ...

    def result(self, timeout: float | None = None) -> Awaitable[R_co]:
        """Wait for the value; raises ``JobError`` if there is none."""
        ...

    def outcome(self, timeout: float | None = None) -> Awaitable[Outcome]:
        """Wait for the outcome, whatever it is."""
        ...

    def cancel(self) -> Awaitable[None]:
        """Tell the nodes that the job is not wanted any more."""
        ...


class Enqueuer(Protocol):
    """Whatever can enqueue a call: a ``fumehood.client.Client``."""

    def enqueue(
        self,
        call: Call[R],
        /,
        *,
        timeout: float | None,
        expires: float | datetime | None,
        queue: str | None,
        job_id: str | None,
        limits: Limits | None,
        reply: bool,
    ) -> Awaitable[Handle[R]]:
        """Hand a job to the broker; options as in ``Client.enqueue``."""
        ...
