"""``run_handler``: a task in a sandbox, from synchronous code and without any broker."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

from fumehood.common.errors import ConfigurationError, SandboxUnavailable
from fumehood.common.outcome import Blame, Outcome, Status
from fumehood.common.settings import Settings, load_settings
from fumehood.common.task import Task, registry
from fumehood.worker.inline import run_inline
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.options import make_job
from fumehood.worker.sandbox.profiles import Profiles
from fumehood.worker.sandbox.protection import make_manager

log = logging.getLogger("fumehood.sandbox")

_ids = itertools.count(1)
_CLOSE_MAX = 10.0  # seconds that an exit of this process waits for its sandboxes to end


def run_handler(
    task_id: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    timeout: float,
    fallback: bool = True,
    *,
    settings: Settings | None = None,
) -> Any:
    """Run a task in a sandbox of its own and return its value.

    ``timeout`` is in seconds from the start of the task's code; at it the task is killed with all
    that it started, and ``TimeoutError`` (a ``JobTimedOut``) is raised. A task that raised is a
    ``JobFailed``, one that crashed or exited another ``JobError``; the outcome is on each.

    With ``fallback`` a task whose sandbox failed, or that timed out, is run once more, inline: in
    this process and without a bound, so that its exceptions come out as they are. A task that
    crashed is not, for it would crash this process; nor is one declared ``untrusted``.

    The task's module is imported in the sandbox's zygote, which stays until this process ends. Safe
    to call from any thread, and not from a coroutine, which it would block: use ``Sandbox`` there.
    Raises ``UnknownTask``, ``InvalidArguments``, ``PayloadTooLarge``; without ``fallback``
    ``JobStartFailed`` where no sandbox can be had.
    """
    _refuse_at_import()
    task = registry.get(task_id)
    settings = load_settings() if settings is None else settings
    call = task.bind(tuple(args), dict(kwargs))
    job = make_job(call, settings, f"local-{os.getpid()}-{next(_ids)}", timeout=timeout)
    outcome = _run_in_sandbox(task, job, settings)
    if outcome.ok:
        return _rebuilt(task, outcome.value)
    trusted = task.options.profile == "trusted"
    if (
        fallback
        and trusted
        and (outcome.blame is Blame.INFRA or outcome.status is Status.TIMED_OUT)
    ):
        log.warning("the sandbox failed: the task runs inline", extra={"cause": outcome.reason})
        return _rebuilt(task, run_inline(job))
    raise outcome.as_error()


def _refuse_at_import() -> None:
    # Only a zygote has this module loaded as it imports task modules.
    zygote = sys.modules.get("fumehood.worker.sandbox.zygote")
    if zygote is not None and zygote.importing:
        raise ConfigurationError(
            "run_handler was called while a sandbox imported this module: put the call behind "
            "if __name__ == '__main__':"
        )


def _rebuilt(task: Task[..., Any], value: Any) -> Any:
    return value if task.plan.result is None else task.plan.result(value)


def _run_in_sandbox(task: Task[..., Any], job: Job, settings: Settings) -> Outcome:
    try:
        return _house.run(_module_of(task), job, settings)
    except SandboxUnavailable as exc:
        return Outcome(
            Status.START_FAILED, job.job_id, job.task, Blame.INFRA, str(exc), stage="zygote"
        )


def _module_of(task: Task[..., Any]) -> str:
    if "<locals>" in task.function.__qualname__ or task.module == "__main__":
        raise ConfigurationError(
            f"{task.name} cannot be imported by a sandbox: declare it at the top level of a module"
        )
    return task.module


class _House:
    """Sandbox managers for synchronous callers, on the loop of one background thread.

    One manager for each task module and way of making sandboxes, with as many slots as are called
    at a time. A fork of this process starts over: threads and sockets do not survive one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._managers: dict[tuple[str, ...], Future[Profiles]] = {}

    def run(self, module: str, job: Job, settings: Settings) -> Outcome:
        """Run a job. Raises ``SandboxUnavailable``."""
        loop, manager = self._manager(module, settings)
        outcome = asyncio.run_coroutine_threadsafe(manager.result().run(job), loop)
        try:
            return outcome.result()
        except BaseException:  # such as KeyboardInterrupt: nobody waits for the job any more
            outcome.cancel()
            raise

    def _manager(
        self, module: str, settings: Settings
    ) -> tuple[asyncio.AbstractEventLoop, Future[Profiles]]:
        key = (module, settings.sandbox_ctx, *settings.sandbox_env, "|", *settings.sandbox_disable)
        with self._lock:
            loop = self._running_loop()
            future = self._managers.get(key)
            if future is None or (future.done() and future.exception() is not None):
                future = asyncio.run_coroutine_threadsafe(_start_manager(module, settings), loop)
                self._managers[key] = future
        future.result()
        return loop, future

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._loop = asyncio.new_event_loop()
            threading.Thread(
                target=self._loop.run_forever, name="fumehood-sandbox", daemon=True
            ).start()
            atexit.register(self._close, self._pid)
        return self._loop

    def start_over(self) -> None:
        """In a fork of this process: nothing of the parent's is ours, its lock included."""
        self._lock = threading.Lock()
        for future in self._managers.values():
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().disown()
        self._managers = {}

    def _close(self, pid: int) -> None:
        if pid != os.getpid() or self._loop is None:
            return
        stops: list[Future[None]] = []
        for future in self._managers.values():
            with contextlib.suppress(Exception):
                stop = future.result(0).stop()
                stops.append(asyncio.run_coroutine_threadsafe(stop, self._loop))
        wait(stops, timeout=_CLOSE_MAX)
        self._managers.clear()


async def _start_manager(module: str, settings: Settings) -> Profiles:
    profiles = Profiles(make_manager(settings, [module], settings.concurrency))
    await profiles.start()
    return profiles


_house = _House()
os.register_at_fork(after_in_child=_house.start_over)
