"""What AsyncMQ is known to fail on: one test for each failure, named after it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sandboxes import Bench, is_alive, make_settings, wait_for

from fumehood.common import Status
from fumehood.common.task import Task
from fumehood.worker import Sandbox
from hostile.tasks import asyncmq


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    sandbox = Sandbox(("hostile.tasks.asyncmq",), 1, "trusted", settings=make_settings())
    with Bench(sandbox) as bench:
        yield bench


@pytest.mark.parametrize("size", [100 << 10, 1 << 20, 8 << 20])
def test_a_result_of_100_kib_deadlocks(bench: Bench, size: int) -> None:
    outcome = bench.run(asyncmq.return_bytes.call(size), timeout=5.0)
    assert (outcome.status, len(outcome.value)) == (Status.SUCCEEDED, size)
    assert outcome.usage.wall < 2.0


@pytest.mark.parametrize("microseconds", [100, 300, 600, 1000, 1500, 2500, 4000, 6000])
def test_a_child_killed_in_mid_send_hangs_the_parent(bench: Bench, microseconds: int) -> None:
    size = 4 << 20
    started = time.monotonic()
    outcome = bench.run(asyncmq.die_in_mid_send.call(size, microseconds / 1e6), timeout=5.0)
    assert time.monotonic() - started < 2.0
    if outcome.ok:  # it was through before the signal came
        assert outcome.value == bytes(size)
    else:
        assert (outcome.status, outcome.signal) == (Status.CRASHED, "SIGKILL"), outcome
    assert bench.run(asyncmq.return_bytes.call(1)).value == b"\0"


def test_a_task_that_ignores_sigterm_outlives_its_timeout(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    outcome = bench.run(asyncmq.ignore_sigterm.call(str(file)), timeout=0.3)
    assert outcome.status is Status.TIMED_OUT
    assert outcome.usage.wall < 1.3
    assert not is_alive(int(file.read_text()))


def test_grandchildren_survive(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    outcome = bench.run(asyncmq.leave_grandchild.call(str(file)))
    assert outcome.value == "returned"
    assert outcome.leaked_processes == 1
    wait_for(lambda: not is_alive(int(file.read_text())), "its end", timeout=0.5)


@pytest.mark.parametrize("task", [asyncmq.return_payload, asyncmq.raise_payload])
def test_unpickling_runs_code_in_the_parent(
    bench: Bench, tmp_path: Path, task: Task[[str], Any]
) -> None:
    file = tmp_path / "ran"
    outcome = bench.run(task.call(str(file)))
    assert outcome.status is Status.FAILED, outcome
    assert not file.exists()
    os.system(f"touch {file}")  # noqa: S605 - the control: this is what it would have done
    assert file.exists()


def test_sys_exit_and_a_segmentation_fault_look_alike(bench: Bench) -> None:
    left = bench.run(asyncmq.end.call("exit"))
    crashed = bench.run(asyncmq.end.call("crash"))
    assert (left.status, left.exit_code, left.signal) == (Status.EXITED, 3, None)
    assert (crashed.status, crashed.signal) == (Status.CRASHED, "SIGSEGV")
    assert "in end" in crashed.stack
