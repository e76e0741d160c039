"""Nodes as processes of their own, and what happens when they, or parts of them, are killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from support import jobs
from support.aio import async_test, until
from support.node_process import WorkerProcess, run_fumehood, worker
from support.rabbitmq import PrivateNode, free_port

from fumehood.client import Client, JobHandle
from fumehood.common import Outcome, Settings, Status
from fumehood.worker.sandbox.killer import children_of, descendants_of

pytestmark = pytest.mark.rabbitmq

TESTS = Path(__file__).parents[1]
PATIENCE = 60.0  # seconds for what takes less than one
SETTINGS = Settings(sandbox_default_timeout=600.0, declare_queues=True)


def node(
    rabbit: PrivateNode, *queues: str, slots: int = 2, env: Mapping[str, str] | None = None
) -> AbstractContextManager[WorkerProcess]:
    options = [part for queue in queues for part in ("-q", queue)]
    options += ["-c", str(slots), "--broker", rabbit.url]
    return worker("support.jobs", *options, cwd=TESTS, env=env)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def any_alive(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if alive(pid)]


class Trail:
    """What the task ``trail`` leaves behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def call(self, seconds: float, *, spread: bool = False) -> Any:
        return (jobs.spread if spread else jobs.trail).call(str(self.folder), seconds)

    def pids(self, what: str) -> list[int]:
        return [int(path.name.partition("-")[2]) for path in self.folder.glob(f"{what}-*")]

    async def started(self, count: int) -> None:
        await until(lambda: len(self.pids("start")) == count, f"{count} starts", timeout=PATIENCE)


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path)


async def ended(node: WorkerProcess) -> int:
    await until(lambda: node.process.poll() is not None, "the node's end", timeout=PATIENCE)
    return int(node.process.returncode)


async def outcome(handle: JobHandle[Any]) -> Outcome:
    return await handle.outcome(PATIENCE)


@async_test
async def test_sigterm_drains(rabbit: PrivateNode, queue_name: str, trail: Trail) -> None:
    one, two = f"{queue_name}-one", f"{queue_name}-two"
    async with Client(rabbit.url, settings=SETTINGS) as client:
        with node(rabbit, one, two, slots=1) as first:
            running = await client.enqueue(trail.call(4.0), queue=one)
            await trail.started(1)
            waiting = await client.enqueue(jobs.fine.call(1), queue=two)
            first.process.terminate()
            await until(lambda: "draining" in first.log, "the drain")
            with node(rabbit, one, two) as second:
                late = await client.enqueue(jobs.fine.call(2), queue=one)
                elsewhere = {(await outcome(waiting)).node, (await outcome(late)).node}
                done = await outcome(running)
                assert (done.status, done.value) == (Status.SUCCEEDED, "done")
                assert elsewhere.isdisjoint({done.node})
                assert await ended(first) == 0
                assert second.process.poll() is None
        assert len(trail.pids("start")) == len(trail.pids("end")) == 1


@async_test
async def test_when_the_grace_runs_out_jobs_are_given_back(
    rabbit: PrivateNode, queue_name: str, trail: Trail
) -> None:
    async with Client(rabbit.url, settings=SETTINGS) as client:
        with node(rabbit, queue_name, env={"FUMEHOOD_DRAIN_GRACE": "0.3"}) as first:
            handle = await client.enqueue(trail.call(300.0), queue=queue_name)
            await trail.started(1)
            first.process.terminate()
            assert await ended(first) == 0
        assert any_alive(trail.pids("start")) == []
        with node(rabbit, queue_name):
            await trail.started(2)
            await handle.cancel()
            assert (await outcome(handle)).status is Status.CANCELLED


TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize("signals", [(TERM, TERM), (TERM, INT), (INT,)], ids=["2xTERM", "2", "INT"])
@async_test
async def test_the_node_is_stopped_at_once(
    rabbit: PrivateNode, queue_name: str, trail: Trail, signals: tuple[signal.Signals, ...]
) -> None:
    async with Client(rabbit.url, settings=SETTINGS) as client:
        with node(rabbit, queue_name, env={"FUMEHOOD_DRAIN_GRACE": "600"}) as first:
            handle = await client.enqueue(trail.call(300.0, spread=True), queue=queue_name)
            await trail.started(1)
            family = descendants_of(first.process.pid)
            for number in signals:
                first.process.send_signal(number)
                if number is TERM:
                    await until(lambda: "draining" in first.log, "the drain")
            assert await ended(first) == 0
        assert any_alive({*family, *trail.pids("start"), *trail.pids("grandchild")}) == []
        with node(rabbit, queue_name):
            await trail.started(2)
            await handle.cancel()
            assert (await outcome(handle)).status is Status.CANCELLED


@async_test
async def test_a_killed_node_leaves_nothing_and_its_jobs_run_elsewhere(
    rabbit: PrivateNode, queue_name: str, trail: Trail
) -> None:
    async with Client(rabbit.url, settings=SETTINGS) as client:
        with node(rabbit, queue_name) as first:
            calls = trail.call(1.0), trail.call(1.0, spread=True)
            handles = [await client.enqueue(call, queue=queue_name) for call in calls]
            await trail.started(2)
            family = descendants_of(first.process.pid) | set(trail.pids("grandchild"))
            assert len(family) >= 4
            first.process.kill()
            await ended(first)
            await until(lambda: not any_alive(family), "the end of all that it had started")
        with node(rabbit, queue_name):
            for handle in handles:
                assert (await outcome(handle)).value == "done"
        assert len(trail.pids("start")) == 4
        assert any_alive([*trail.pids("start"), *trail.pids("grandchild")]) == []


def zygote_of(node: WorkerProcess) -> int:
    (pid,) = filter(is_zygote, children_of(node.process.pid))
    return pid


def is_zygote(pid: int) -> bool:
    return b"zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()


@async_test
async def test_a_killed_zygote_costs_no_job_its_verdict(
    rabbit: PrivateNode, queue_name: str, trail: Trail
) -> None:
    async with Client(rabbit.url, settings=SETTINGS) as client:
        with node(rabbit, queue_name, slots=3) as only:
            calls = [trail.call(1.0), jobs.leave.call(3), jobs.nap.call(300)]
            zygote = zygote_of(only)
            first = await client.enqueue(calls[0], queue=queue_name)
            late = await client.enqueue(calls[2], queue=queue_name, timeout=2.0)
            await trail.started(1)
            os.kill(zygote, signal.SIGKILL)
            leaving = await client.enqueue(calls[1], queue=queue_name)
            assert (await outcome(first)).value == "done"
            assert (await outcome(late)).status is Status.TIMED_OUT
            assert (await outcome(leaving)).exit_code == 3
            assert zygote_of(only) != zygote
            # What the zygote leaves to the node is reaped.
            await until(lambda: all(map(alive, children_of(only.process.pid))), "no zombie")
            assert await client.run(jobs.fine.call(2), queue=queue_name) == 4
            only.process.terminate()
            assert await ended(only) == 0
        assert len(trail.pids("start")) == 1


@async_test
async def test_a_node_gets_over_a_broker_that_goes_and_comes(
    fresh_rabbit: PrivateNode, queue_name: str, trail: Trail
) -> None:
    async def ctl(*arguments: str) -> None:
        await asyncio.to_thread(fresh_rabbit.ctl, *arguments)

    async with Client(fresh_rabbit.url, settings=SETTINGS) as client:
        with node(fresh_rabbit, queue_name, slots=4) as only:
            # Connections are lost while jobs run.
            handles = [await client.enqueue(trail.call(5.0), queue=queue_name) for _ in range(3)]
            await trail.started(3)
            await ctl("close_all_connections", "a test")
            for handle in handles:
                assert (await outcome(handle)).value == "done"
            assert len(trail.pids("start")) == 3  # they came again while they ran
            # The broker is gone as jobs end.
            handles = [await client.enqueue(trail.call(4.0), queue=queue_name) for _ in range(3)]
            await trail.started(6)
            await asyncio.to_thread(fresh_rabbit.stop)
            await until(lambda: len(trail.pids("end")) == 6, "their end", timeout=PATIENCE)
            await asyncio.to_thread(fresh_rabbit.start)
            for handle in handles:
                assert (await outcome(handle)).value == "done"
            assert len(trail.pids("start")) == 6
            assert await client.run(jobs.fine.call(2), queue=queue_name) == 4
            only.process.terminate()
            assert await ended(only) == 0
        await until(lambda: empty(fresh_rabbit), "empty queues")


def empty(rabbit: PrivateNode) -> bool:
    rows = rabbit.ctl("list_queues", "name", "messages", "--no-table-headers").split("\n")
    return all(row.split()[1] == "0" for row in rows if row.strip())


def test_a_node_that_finds_no_broker_says_so(tmp_path: Path) -> None:
    url = f"amqp://guest:guest@127.0.0.1:{free_port()}/"
    env = {"FUMEHOOD_CONNECT_TIMEOUT": "1.5"}
    done = run_fumehood("worker", "support.jobs", "--broker", url, cwd=TESTS, env=env)
    assert done.returncode not in {0, 1}
    last = done.stderr.strip().splitlines()[-1]
    assert "connection refused" in last
    assert "127.0.0.1" in last
    assert "guest:guest" not in done.stderr
    assert "Traceback" not in done.stderr
