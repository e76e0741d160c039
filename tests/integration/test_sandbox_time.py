"""Deadlines, and what a job leaves behind: everything that it started ends with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sandbox_tasks as tasks
from support.aio import async_test, until
from support.sandboxes import MODES, WAYS, Bench, is_alive, make_sandbox, pids_in, wait_for

from fumehood.common import Blame, Status

LATE = 1.0  # seconds after its timeout by which a job must be dead on a machine under load


@pytest.fixture(scope="module", params=WAYS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    disable, ctx = request.param
    with Bench(make_sandbox(disable, sandbox_ctx=ctx)) as bench:
        yield bench


@pytest.mark.parametrize(
    ("how", "stack"),
    [
        ("busy", "in hang"),
        ("sum", "in hang"),
        ("regex", "in match"),
        ("ignored", "in hang"),
        ("masked", ""),
        ("threads", "Thread 0x"),
        ("gil", "in hang"),
        ("swallow", "in hang"),
        ("stopped", ""),
    ],
)
def test_whatever_it_does_it_ends_in_time(bench: Bench, how: str, stack: str) -> None:
    outcome = bench.run(tasks.hang.call(how), timeout=0.1)
    assert (outcome.status, outcome.blame) == (Status.TIMED_OUT, Blame.LIMIT)
    assert stack in outcome.stack
    assert 0.1 <= outcome.usage.wall < 0.1 + LATE
    assert outcome.reason == "killed at its timeout of 0.1 s"
    assert bench.run(tasks.add.call(1, 1)).value == 2


def test_sleeps_end_in_time(bench: Bench) -> None:
    for call in (tasks.sleep.call(60), tasks.sleep_async.call(60)):
        outcome = bench.run(call, timeout=0.1)
        assert outcome.status is Status.TIMED_OUT
        assert outcome.usage.wall < 0.1 + LATE


def test_the_shortest_timeout(bench: Bench) -> None:
    for _ in range(5):
        outcome = bench.run(tasks.sleep.call(60), timeout=0.001)
        assert outcome.status is Status.TIMED_OUT


def test_a_deadline_in_the_tick_of_the_result(bench: Bench) -> None:
    seen = set()
    for step in range(10):
        outcome = bench.run(tasks.sleep.call(0.02), timeout=0.016 + step * 0.001)
        seen.add(outcome.status)
        assert outcome.ok == (outcome.value == "slept")
    assert seen <= {Status.SUCCEEDED, Status.TIMED_OUT}


@pytest.mark.parametrize("count", [1, 5])
def test_a_killed_job_takes_its_grandchildren_along(
    bench: Bench, tmp_path: Path, count: int
) -> None:
    ids = tmp_path / "ids"
    outcome = bench.run(tasks.leak_and_hang.call(count, str(ids)), timeout=1.0)
    assert outcome.status is Status.TIMED_OUT
    assert len(pids_in(ids)) == count
    wait_for(lambda: not any(map(is_alive, pids_in(ids))), "their end", 2.0)


def test_what_a_job_leaves_behind_is_counted_and_ended(bench: Bench, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    started = time.monotonic()
    outcome = bench.run(tasks.leak.call(3, str(ids)))
    assert outcome.value == "done"
    assert outcome.leaked_processes == 3
    assert not any(map(is_alive, pids_in(ids)))
    assert time.monotonic() - started < 10  # they hold its stdout, for five minutes


def test_fifty_children(bench: Bench, tmp_path: Path) -> None:
    outcome = bench.run(tasks.bomb.call(str(tmp_path / "lit")))
    assert outcome.value == "lit"
    assert outcome.leaked_processes == 50


def test_a_dead_child_is_no_leak(bench: Bench) -> None:
    outcome = bench.run(tasks.leave_dead_child.call())
    assert outcome.ok
    assert outcome.leaked_processes == 0


@pytest.mark.parametrize("disable", MODES)
@async_test
async def test_cancelling_the_caller_ends_the_job(disable: tuple[str, ...], tmp_path: Path) -> None:
    async with make_sandbox(disable) as sandbox:
        file = tmp_path / "pid"
        running = asyncio.ensure_future(sandbox.run(tasks.hang_when_told.call(str(file)), 60))
        await until(lambda: file.exists() and file.read_text())
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await sandbox.run(tasks.add.call(1, 1), 20)).value == 2
        assert not is_alive(int(file.read_text()))
        assert sandbox.manager.busy == 0


@pytest.mark.parametrize("disable", MODES)
@async_test
async def test_cancelling_a_job_by_its_id(disable: tuple[str, ...], tmp_path: Path) -> None:
    async with make_sandbox(disable) as sandbox:
        file = tmp_path / "pid"
        call = tasks.hang_when_told.call(str(file))
        running = asyncio.ensure_future(sandbox.run(call, 60, job_id="me"))
        await until(lambda: file.exists() and file.read_text())
        assert not sandbox.manager.cancel("another")
        assert sandbox.manager.cancel("me")
        outcome = await running
        assert outcome.status is Status.CANCELLED
        assert "in hang_when_told" in outcome.stack


# --- soft timeouts --------------------------------------------------------------------------


def test_a_soft_timeout_lets_a_task_clean_up(bench: Bench) -> None:
    outcome = bench.run(tasks.clean_up.call(30.0), timeout=20.0)
    assert (outcome.status, outcome.value) == (Status.SUCCEEDED, "cleaned up")
    assert outcome.usage.wall >= 0.1
    assert bench.run(tasks.clean_up.call(0.0)).value == "finished"


def test_a_soft_timeout_in_coroutines(bench: Bench) -> None:
    outcome = bench.run(tasks.clean_up_async.call(30.0), timeout=20.0)
    assert (outcome.status, outcome.value) == (Status.SUCCEEDED, "cleaned up")
    assert bench.run(tasks.spin_async.call(), timeout=20.0).value == "cleaned up"
    assert bench.run(tasks.clean_up_async.call(0.0)).value == "finished"


def test_a_soft_timeout_that_nobody_catches(bench: Bench) -> None:
    outcome = bench.run(tasks.raise_on.call(), timeout=20.0)
    assert (outcome.status, outcome.blame) == (Status.FAILED, Blame.TASK)
    assert outcome.error is not None
    assert outcome.error.type == "fumehood.common.context.SoftTimeout"


def test_a_soft_timeout_is_no_way_around_the_timeout(bench: Bench) -> None:
    outcome = bench.run(tasks.go_on_regardless.call(), timeout=0.4)
    assert (outcome.status, outcome.limit_value) == (Status.TIMED_OUT, 0.4)
    assert "go_on_regardless" in outcome.stack


def test_a_timeout_below_the_soft_one(bench: Bench) -> None:
    outcome = bench.run(tasks.clean_up.call(30.0), timeout=0.05)
    assert outcome.status is Status.TIMED_OUT
