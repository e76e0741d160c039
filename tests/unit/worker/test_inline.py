"""Jobs without a sandbox: what still holds, and what an operator is told of the rest."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from support.aio import async_test, until

from fumehood.common import Blame, Status, current_job, task
from fumehood.common.arguments import encode_arguments
from fumehood.common.errors import SandboxUnavailable
from fumehood.worker.inline import LOST, InlineRunner, run_inline
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.verdict import KillReason

_ends = threading.Event()


@task(name="inline.about")
def about(n: int) -> list[Any]:
    return [n, current_job().id, threading.current_thread().name]


@task(name="inline.nap")
async def nap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return current_job().id


@task(name="inline.block")
def block() -> str:
    _ends.wait(20)
    return "unblocked"


@task(name="inline.fail")
def fail(kind: str) -> None:
    _raise(kind)


@task(name="inline.fail_async")
async def fail_async(kind: str) -> None:
    await asyncio.sleep(0)
    _raise(kind)


def _raise(kind: str) -> None:
    kinds: dict[str, BaseException] = {
        "value": ValueError("no"),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "generator": GeneratorExit(),
        "timeout": TimeoutError("of its own"),
        "base": BaseException("bare"),
    }
    raise kinds[kind]


@task(name="inline.give")
def give(what: str) -> Any:
    return {"large": bytes(5000), "lock": threading.Lock()}[what]


def _job(declared: Any, *args: Any, timeout: float = 20.0, job_id: str = "j") -> Job:
    arguments = encode_arguments(declared.call(*args), 1 << 20)
    return Job(job_id, declared.name, arguments, timeout, result_max=1000, output_max=1000)


def test_what_is_lost_is_said() -> None:
    for word in ("hangs", "crashes", "leaks", "exits", "timeouts"):
        assert word in LOST


@async_test
async def test_jobs_run_here() -> None:
    runner = InlineRunner([], 2)
    await runner.start()
    outcome = await runner.run(_job(about, 7))
    assert outcome.value[:2] == [7, "j"]
    assert outcome.value[2].startswith("fumehood-inline")
    outcomes = await asyncio.gather(
        *(runner.run(_job(nap, 0.01, job_id=f"j{n}")) for n in range(4))
    )
    assert [outcome.value for outcome in outcomes] == ["j0", "j1", "j2", "j3"]
    await runner.stop()


@async_test
async def test_slots() -> None:
    runner = InlineRunner([], 2)
    started = time.monotonic()
    await asyncio.gather(*(runner.run(_job(nap, 0.05, job_id=f"j{n}")) for n in range(6)))
    assert time.monotonic() - started >= 0.15
    await runner.stop()


@pytest.mark.parametrize("declared", [fail, fail_async], ids=["sync", "async"])
@pytest.mark.parametrize("kind", ["value", "exit", "interrupt", "generator", "timeout", "base"])
@async_test
async def test_whatever_a_task_raises_is_its_own_failure(declared: Any, kind: str) -> None:
    runner = InlineRunner([], 1)
    outcome = await runner.run(_job(declared, kind))
    assert (outcome.status, outcome.blame) == (Status.FAILED, Blame.TASK)
    assert outcome.error is not None
    if kind in {"exit", "interrupt"}:
        assert outcome.error.message.startswith("the task ended with")
    assert (await runner.run(_job(about, 1))).ok
    await runner.stop()


@async_test
async def test_values_that_cannot_leave() -> None:
    runner = InlineRunner([], 1)
    outcome = await runner.run(_job(give, "large"))
    assert (outcome.status, outcome.limit) == (Status.LIMIT_EXCEEDED, "result")
    outcome = await runner.run(_job(give, "lock"))
    assert outcome.error is not None
    assert "cannot be carried" in outcome.error.message
    await runner.stop()


@async_test
async def test_a_timeout_ends_an_async_task() -> None:
    runner = InlineRunner([], 1)
    outcome = await runner.run(_job(nap, 60, timeout=0.05))
    assert (outcome.status, outcome.blame) == (Status.TIMED_OUT, Blame.LIMIT)
    await runner.stop()


@async_test
async def test_cancels() -> None:
    _ends.clear()
    runner = InlineRunner([], 2)
    jobs = [
        asyncio.ensure_future(runner.run(_job(nap, 60, job_id="one"))),
        asyncio.ensure_future(runner.run(_job(block, job_id="two"))),
    ]
    await until(lambda: len(runner._running) == 2)
    assert not runner.cancel("three")
    assert runner.cancel("one")
    assert (await jobs[0]).status is Status.CANCELLED
    runner.kill_all(KillReason.SHUTDOWN)
    outcome = await jobs[1]
    assert (outcome.status, outcome.blame) == (Status.CANCELLED, Blame.INFRA)
    caller = asyncio.ensure_future(runner.run(_job(nap, 60)))
    await until(lambda: runner._running)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not runner._running
    _ends.set()
    await runner.stop()


@async_test
async def test_a_module_that_does_not_import() -> None:
    with pytest.raises(SandboxUnavailable, match="no_such_module"):
        await InlineRunner(["no_such_module"], 1).start()


def test_run_inline_is_plain() -> None:
    assert run_inline(_job(about, 7))[:2] == [7, "j"]
    assert run_inline(_job(nap, 0.001)) == "j"
    with pytest.raises(ValueError, match="no"):
        run_inline(_job(fail, "value"))
