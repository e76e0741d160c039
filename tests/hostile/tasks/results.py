"""Tasks whose values or output nobody can or should carry."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fumehood.common import task

_KEPT: list[Any] = []  # what must not be collected before the end


@task
def give_size(size: int) -> bytes:
    return bytes(size)


@task
def give_text(size: int) -> str:
    return "\ud7ff" * size


@task
def give_odd(what: str) -> Any:  # noqa: C901, PLR0912 - a catalogue
    if what == "object":
        return object()
    if what == "circle":
        circle: list[Any] = []
        circle.append(circle)
        return circle
    if what == "deep":
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        return deep
    if what == "huge int":
        return 10**5000
    if what == "surrogate":
        return "\ud800"
    if what == "lock":
        return threading.Lock()
    if what == "class":
        return type("Local", (), {})
    if what == "module":
        return sys
    if what == "file":
        return sys.stdout
    if what == "lying list":
        return _LyingList([1])
    if what == "lying text":
        return _LyingText("truth")
    if what == "keys":
        return {object(): 1}
    if what == "coroutine":
        return give_later.function()
    if what == "generator":
        return _numbers()
    if what == "async generator":
        return _async_numbers()
    if what == "future":
        return asyncio.new_event_loop().create_future()
    raise KeyError(what)


class _LyingList(list[Any]):
    def __len__(self) -> int:
        return 1 << 40

    def __iter__(self) -> Iterator[Any]:
        raise SystemExit(3)


class _LyingText(str):
    __slots__ = ()

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        raise KeyboardInterrupt


def _numbers() -> Iterator[int]:
    while True:
        yield 1


async def _async_numbers() -> AsyncIterator[int]:
    while True:
        yield 1


@task
async def give_later() -> str:
    await asyncio.sleep(0)
    return "later"


@task
def give_plain(what: str) -> Any:
    values: dict[str, Any] = {
        "nan": float("nan"),
        "infinity": float("-inf"),
        "set": {1, 2},
        "bytes": bytes(range(256)),
        "nul": "a\0b",
        "time": dt.datetime(2000, 1, 1, tzinfo=dt.UTC),
        "nested": {"a": [{"b": (1, None, True)}]},
        "large int": 2**64 - 1,
    }
    return values[what]


@task
def give_slowly(count: int) -> Any:
    """A value that takes its time to encode, all of it after the task has returned."""
    one = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    return [one] * count


@task
def give_too_late(size: int, seconds: float) -> bytes:
    """SIGALRM comes somewhere between the return and the end."""
    import signal

    signal.setitimer(signal.ITIMER_REAL, seconds)
    return b"\xa5" * size


# --- output ---------------------------------------------------------------------------------


@task
def flood(stream: int, size: int) -> str:
    chunk = b"x" * (1 << 16)
    for _ in range(size >> 16):
        os.write(stream, chunk)
    return "poured"


@task
def flood_from_a_daemon(size: int) -> str:
    if os.fork() == 0:
        os.setsid()
        flood.function(1, size)
        os._exit(0)
    return "left"


@task
def print_odd(what: str) -> str:
    texts = {
        "binary": bytes(range(256)),
        "escapes": b"\x1b[2J\x1b]0;title\x07\r\n\n\x08" * 20,
        "half": "\u20ac".encode()[:2],
        "protocol": b"V\xc0R12345678" * 10,
        "lines": b"ERROR fumehood.sandbox forged log line\n" * 50,
        "nul": bytes(1000),
    }
    os.write(1, texts[what])
    return "printed"


@task
def print_surrogate() -> str:
    print("\ud800 and on")
    return "printed"


@task(progress=True)
def flood_with_progress(count: int) -> str:
    from fumehood.common import current_job

    for number in range(count):
        current_job().progress(0.5, "x" * 500, {"number": number})
    return "told"


@task
async def leave_tasks_behind() -> str:
    async def linger() -> None:
        try:
            await asyncio.sleep(20)
        finally:
            os.sched_yield()

    _KEPT.extend(asyncio.create_task(linger()) for _ in range(3))
    await asyncio.sleep(0)
    return "returned"


@task
async def refuse_to_be_cancelled() -> str:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                continue

    _KEPT.append(asyncio.create_task(stubborn()))
    await asyncio.sleep(0)
    return "returned"
