"""``JobHandle``: what a producer holds of a job that the broker accepted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, cast

from fumehood.client.replies import Closed, Replies, Reply
from fumehood.common.errors import DecodeError, InvalidArguments
from fumehood.common.outcome import Outcome
from fumehood.common.task import Task

R_co = TypeVar("R_co", covariant=True)


class JobHandle(Generic[R_co]):
    """A job that the broker accepted; ``R`` is the type of its value.

    Any number of tasks may wait on one handle, and each may be cancelled without harm to the
    others. A handle may be dropped at any time: the job goes on, its outcome is ignored.
    """

    __slots__ = ("_cancel", "_replies", "_reply", "id", "task")

    def __init__(
        self,
        job_id: str,
        task: Task[..., R_co],
        reply: Reply | None,
        replies: Replies,
        cancel: Callable[[str], Awaitable[None]],
    ) -> None:
        self.id = job_id
        self.task = task
        self._reply = reply
        self._replies = replies
        self._cancel = cancel

    async def result(self, timeout: float | None = None) -> R_co:
        """Wait for the job and return its value, rebuilt to the task's return annotation.

        ``timeout`` is the seconds that this caller waits, not the job's: when they run out, the
        builtin ``TimeoutError`` is raised, the job goes on, and ``result`` may be called again. (A
        job that was killed at its own timeout is a ``JobTimedOut``.) Raises the ``JobError`` that
        fits the outcome, ``ClientClosed``, ``DecodeError`` for a value that cannot be read or does
        not fit the annotation, and ``InvalidArguments`` for a job enqueued with ``reply=False``.
        """
        outcome = await self.outcome(timeout)
        value = outcome.unwrap()
        build = self.task.plan.result
        if build is None:
            return cast("R_co", value)
        try:
            return cast("R_co", build(value))
        except Exception as cause:
            raise DecodeError(
                f"the value of {self.task.name} [{self.id}] does not fit its annotation: {cause}"
            ) from cause

    async def outcome(self, timeout: float | None = None) -> Outcome:
        """Wait for the job and return its outcome, whatever that is.

        ``timeout`` and errors are as in ``result``, without the ``JobError``.
        """
        reply = self._reply
        if reply is None:
            raise InvalidArguments(
                f"job {self.id} was enqueued with reply=False: its outcome is sent to nobody"
            )
        if not reply.done() and not await self._replies.wait(reply, timeout):
            raise TimeoutError(
                f"no outcome of {self.task.name} [{self.id}] within {timeout} s of waiting; "
                "the job goes on"
            )
        found = reply.result()
        if isinstance(found, Closed):
            raise found.error(self.id)
        return found

    def done(self) -> bool:
        """Whether waiting would return at once; never so with ``reply=False``."""
        return self._reply is not None and self._reply.done()

    async def cancel(self) -> None:
        """Tell all nodes to drop the job, or to kill it if it runs; nothing when it is done.

        Returns when the broker has the request. What became of the job is for ``outcome`` to tell:
        it may have finished first. May be repeated. Raises ``BrokerUnavailable``.
        """
        if not self.done():
            await self._cancel(self.id)

    @property
    def _state(self) -> str:
        if self._reply is None:
            return "no reply"
        if not self._reply.done():
            return "pending"
        found: Any = self._reply.result()
        return "client closed" if isinstance(found, Closed) else str(found.status)

    def __repr__(self) -> str:
        """Such as ``<JobHandle 01946a2b... app.tasks.add pending>``."""
        return f"<JobHandle {self.id} {self.task.name} {self._state}>"
