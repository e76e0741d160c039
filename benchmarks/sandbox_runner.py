"""Fumehood's own runner: ``python benchmarks/sandbox_runner.py KIND SLOTS``.

KIND is "inline" (in this process, behind the same encoding), "trusted", "untrusted", or "spawn"
(trusted, with a fresh interpreter for each job). Besides what ``rivals/orders.py`` tells it knows
``kill COUNT WIDTH TASK``: COUNT jobs of ``hang``, ``spin`` or ``tree``, WIDTH at a time, that are
killed at their timeout. The answer has ``late``, seconds from each deadline to the outcome, which
is made when all that the job started is gone; and ``left``, how many daemons of ``tree`` were
still there by then, null where their process ids mean nothing out here.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import bench_tasks
import tree_tasks
from rivals import orders

from fumehood.common import Outcome, Settings, Status
from fumehood.common.errors import ConfigurationError, SandboxUnavailable
from fumehood.common.task import Call
from fumehood.worker import Sandbox
from fumehood.worker.inline import run_inline
from fumehood.worker.sandbox.options import make_job

DAEMONS = 4  # that a job of ``tree`` starts
_KILL_AFTER = 0.05  # seconds
_TREE_KILL_AFTER = 0.2  # seconds; long enough to have started all daemons


def inline(settings: Settings) -> orders.Run:
    """Jobs in this process, one after the other."""

    def once(number: int) -> float:
        called = time.monotonic()
        job = make_job(bench_tasks.add.call(number, 1), settings, "bench", timeout=10.0)
        decoded = time.monotonic()
        assert run_inline(job) == number + 1
        return decoded - called

    def run(count: int, width: int, pause: float) -> list[float]:
        found: list[float] = []
        for number in range(count):
            if pause:
                time.sleep(pause)
            found.append(once(number))
        return found

    return run


async def in_flight(count: int, width: int, once: Callable[[int], Awaitable[None]]) -> None:
    """Call ``once`` ``count`` times, ``width`` at a time."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await once(number)

    await asyncio.gather(*(lane() for _ in range(width)))


async def run_jobs(sandbox: Sandbox, count: int, width: int, pause: float) -> list[float]:
    """Seconds from giving each job to a parked sandbox to the start of its code."""
    setups: list[float] = []

    async def once(number: int) -> None:
        if pause:
            await asyncio.sleep(pause)
        outcome = await sandbox.run(bench_tasks.add.call(number, 1), timeout=10.0)
        assert outcome.value == number + 1, outcome
        setups.append(outcome.usage.setup)

    await in_flight(count, width, once)
    return setups


def still_there(outcome: Outcome) -> int:
    """How many of the daemons whose ids a job has printed are alive."""
    pids = outcome.stdout.split()
    assert len(pids) == DAEMONS, outcome
    alive = 0
    for pid in map(int, pids):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        alive += state not in "ZX"
    return alive


async def kill_jobs(
    settings: Settings, profile: Literal["trusted", "untrusted"], count: int, width: int, what: str
) -> dict[str, Any]:
    """What the order ``kill`` answers."""
    calls: dict[str, Call[Any]] = {
        "hang": bench_tasks.hang.call(60.0),
        "spin": bench_tasks.spin.call(),
        "tree": tree_tasks.tree.call(DAEMONS),
    }
    timeout = _TREE_KILL_AFTER if what == "tree" else _KILL_AFTER
    late: list[float] = []
    left = 0

    async with Sandbox(["bench_tasks", "tree_tasks"], width, profile, settings=settings) as sandbox:

        async def once(_: int) -> None:
            nonlocal left
            outcome = await sandbox.run(calls[what], timeout=timeout)
            assert outcome.status is Status.TIMED_OUT, outcome
            late.append(outcome.usage.wall - timeout)
            if what == "tree" and profile == "trusted":
                left += still_there(outcome)

        await in_flight(count, width, once)
    # An untrusted job counts its processes from 1: those ids are of others out here.
    return {"late": late, "left": left if profile == "trusted" else None}


async def serve(kind: str, slots: int, settings: Settings, desk: orders.Desk) -> None:
    """Answer orders; the loop goes on between them, as a node's does."""
    profile = cast(Literal["trusted", "untrusted"], "trusted" if kind == "spawn" else kind)
    async with Sandbox(["bench_tasks"], slots, profile, settings=settings) as sandbox:
        desk.say(ready=True, version=version("fumehood-worker"))
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, count, width, last = line.split()
            began = time.perf_counter()
            if what == "kill":
                desk.say(**await kill_jobs(settings, profile, int(count), int(width), last))
                continue
            latency = await run_jobs(sandbox, int(count), int(width), float(last))
            desk.say(seconds=time.perf_counter() - began, latency=latency)


def main(kind: str, slots: int) -> None:
    desk = orders.Desk()
    settings = Settings(sandbox_ctx="spawn" if kind == "spawn" else "fork")
    if kind == "inline":
        orders.serve(inline(settings), desk, version=version("fumehood-worker"))
        return
    try:
        asyncio.run(serve(kind, slots, settings, desk))
    except (ConfigurationError, SandboxUnavailable) as exc:
        desk.say(unavailable=str(exc))
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is this runner's answer
        desk.say(failed=f"{type(exc).__name__}: {exc}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
