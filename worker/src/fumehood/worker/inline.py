"""Jobs without a sandbox: inside the node's own process, for those who turned sandboxes off.

Nothing here can stop a job that does not want to stop. Async tasks are cancelled at their timeout;
a sync task runs in a thread to its end, and what it breaks stays broken.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fumehood.common import context
from fumehood.common.arguments import decode_arguments
from fumehood.common.codec import decode, encode
from fumehood.common.errors import DecodeError, InvalidArguments, SandboxUnavailable
from fumehood.common.outcome import Blame, ErrorInfo, Outcome, Status, Usage
from fumehood.common.task import Task, registry
from fumehood.worker.sandbox import fault
from fumehood.worker.sandbox.declared import Declared
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.verdict import Facts, KillReason, Result, decide

#: What an operator is told when sandboxes are turned off.
LOST = (
    "sandbox_enabled is off: jobs run inside the node. A job that hangs, crashes, leaks or exits "
    "does so to the node and to its other jobs; timeouts stop async tasks only"
)


class InlineRunner:
    """Runs jobs in this process, ``slots`` at a time."""

    def __init__(self, modules: Sequence[str], slots: int) -> None:
        self._modules = modules
        self._slots = asyncio.Semaphore(slots)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="fumehood-inline")
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._reasons: dict[str, KillReason] = {}

    @property
    def tasks(self) -> dict[str, Declared]:
        """The tasks that this process knows, by name."""
        found: dict[str, Declared] = {}
        for name in registry.names():
            options = registry.get(name).options
            limits = options.limits.to_wire()
            found[name] = Declared(options.profile, limits, options.timeout, options.soft_timeout)
        return found

    async def start(self) -> None:
        """Import the task modules. Raises ``SandboxUnavailable`` when one cannot be imported."""
        for name in self._modules:
            try:
                importlib.import_module(name)
            except Exception as exc:
                raise SandboxUnavailable(
                    f"cannot import {name}: {type(exc).__name__}: {exc}"
                ) from exc

    async def stop(self) -> None:
        """Cancel async tasks; threads are left to end by themselves."""
        self.kill_all(KillReason.SHUTDOWN)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def cancel(self, job_id: str) -> bool:
        """Cancel an async task. A sync one goes on, and its job ends as CANCELLED all the same."""
        return self._end(job_id, KillReason.CANCELLED)

    def kill_all(self, reason: KillReason) -> None:
        """Cancel every job."""
        for job_id in list(self._running):
            self._end(job_id, reason)

    def _end(self, job_id: str, reason: KillReason) -> bool:
        task = self._running.get(job_id)
        if task is None:
            return False
        self._reasons.setdefault(job_id, reason)
        return task.cancel()

    async def run(self, job: Job) -> Outcome:
        """Run one job here; never one that is untrusted."""
        declared = self.tasks.get(job.task)
        if job.profile == "untrusted" or (declared and declared.profile == "untrusted"):
            reason = "this job is untrusted, and this node runs jobs without a sandbox"
            return Outcome(Status.REJECTED, job.job_id, job.task, Blame.POLICY, reason)
        async with self._slots:
            started = time.monotonic()
            running = asyncio.ensure_future(self._attempt(job, started + job.timeout))
            self._running[job.job_id] = running
            try:
                result: Result | None = await running
            except asyncio.CancelledError:
                if job.job_id not in self._reasons:
                    running.cancel()
                    raise
                result = None
            finally:
                self._running.pop(job.job_id, None)
            return self._judge(job, result, time.monotonic() - started)

    def _judge(self, job: Job, result: Result | None, wall: float) -> Outcome:
        reason = self._reasons.pop(job.job_id, None)
        facts = Facts(
            ready=True,
            result=result,
            kill_reason=reason,
            wait_status=0,
            timeout=job.timeout,
            result_max=job.result_max,
        )
        return decide(
            facts,
            job_id=job.job_id,
            task=job.task,
            attempt=job.attempt,
            usage=Usage(wall=wall),
            finished_at=time.time(),
        )

    async def _attempt(self, job: Job, deadline: float) -> Result | None:
        current = context.CurrentJob(
            job.job_id, job.task, job.attempt, job.token, job.timeout, deadline, job.on_progress
        )
        try:
            args, kwargs = decode_arguments(job.arguments)
        except DecodeError as exc:
            return Result(refused=str(exc))
        try:
            task = registry.get(job.task)
            args, kwargs = task.plan.arguments(args, kwargs)
            value = await self._call(task, args, kwargs, current)
            return _result(value, job.result_max)
        except TimeoutError as exc:
            if time.monotonic() < deadline:
                return _error(exc)
            self._reasons.setdefault(job.job_id, KillReason.DEADLINE)
            return None
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # noqa: BLE001 - a task's own must not end the node
            return _error(exc)

    async def _call(
        self,
        task: Task[..., Any],
        args: list[Any],
        kwargs: dict[str, Any],
        current: context.CurrentJob,
    ) -> Any:
        if task.is_async:
            with context.running(current):
                return await asyncio.wait_for(
                    _await(task.function(*args, **kwargs)), current.remaining()
                )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, _call_sync, task.function, args, kwargs, current
        )


async def _await(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as exc:  # either would end the event loop
        raise RuntimeError(f"the task ended with {type(exc).__name__}") from exc


def _call_sync(
    function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], job: context.CurrentJob
) -> Any:
    with context.running(job):
        try:
            return function(*args, **kwargs)
        except (SystemExit, KeyboardInterrupt) as exc:
            raise RuntimeError(f"the task ended with {type(exc).__name__}") from exc


def _result(value: Any, result_max: int) -> Result:
    try:
        data = encode(value, "result")
    except InvalidArguments as exc:
        return _error(InvalidArguments(f"the task's value cannot be carried: {exc}"))
    return Result(too_large=len(data)) if len(data) > result_max else Result(value=data)


def _error(exc: BaseException) -> Result:
    return Result(error=ErrorInfo(*fault.describe(exc, skip=__file__)))


def run_inline(job: Job) -> Any:
    """Run a job's function in this thread and return its value; its exceptions come out plainly."""
    task = registry.get(job.task)
    args, kwargs = task.plan.arguments(*decode_arguments(job.arguments))
    current = context.CurrentJob(
        job.job_id, job.task, 1, "", job.timeout, time.monotonic() + job.timeout
    )
    with context.running(current):
        value = task.function(*args, **kwargs)
        value = asyncio.run(_await(value)) if task.is_async else value
    return decode(encode(value, "result"))
