"""``SoftTimeout`` in a coroutine: loaded by the sandboxes of async tasks that have a soft timeout.

A signal handler can raise where code runs. While a coroutine waits, no code of its runs, and what
is raised would end the event loop: there the coroutine's task is cancelled, and the cancellation
is made a ``SoftTimeout`` on its way in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

from fumehood.common.context import SoftTimeout
from fumehood.worker.sandbox.signals import SIG_IGN, signal

_WHY = "the soft timeout has passed"


def run(coroutine: Coroutine[Any, Any, Any], number: int) -> Any:
    """Run it as ``asyncio.run``; signal ``number`` raises ``SoftTimeout`` in it, once."""
    return asyncio.run(_main(coroutine, number))


async def _main(coroutine: Coroutine[Any, Any, Any], number: int) -> Any:
    waiting = _Softened(coroutine)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - this runs in one

    def soften() -> None:
        waiting.soft = True
        task.cancel()

    def on_signal(*_: object) -> None:
        signal(number, SIG_IGN)
        if asyncio.current_task(loop) is not None:  # its code, or that of a task that it started
            raise SoftTimeout(_WHY)
        loop.call_soon_threadsafe(soften)

    signal(number, on_signal)
    result = await waiting
    if waiting.soft:
        task.uncancel()
    return result


class _Softened:
    """A coroutine whose cancellation, when ``soft`` is set, arrives as a ``SoftTimeout``."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.soft = False
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        thrown: BaseException | None = None
        told = False
        while True:
            try:
                step = self._coroutine
                awaited = step.send(None) if thrown is None else step.throw(thrown)
            except StopIteration as stop:
                return stop.value
            thrown = None
            try:
                yield awaited
            except asyncio.CancelledError as exc:
                soft = self.soft and not told
                told = told or soft
                thrown = SoftTimeout(_WHY) if soft else exc
            except BaseException as exc:
                thrown = exc
