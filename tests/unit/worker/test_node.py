"""A node as a whole, in memory: start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support import jobs
from support.aio import async_test, until
from support.bench import NO_SANDBOX, TASK, FakeRunner

from fumehood.broker.interface import Broker, OnMessage, Subscription
from fumehood.broker.memory import MemoryBroker
from fumehood.broker.options import BrokerOptions
from fumehood.client import Client
from fumehood.common import BrokerUnavailable, ConfigurationError, Status, task
from fumehood.common.errors import JobCancelled, JobRejected, SandboxUnavailable
from fumehood.common.message import TYPE_CONTROL, Message
from fumehood.common.settings import Settings
from fumehood.worker import Worker
from fumehood.worker.inline import LOST, InlineRunner
from fumehood.worker.node import Node

MODULES = ["support.jobs"]


@task(name=TASK)
def fine() -> str:
    return "fine"


def broker(name: str) -> Broker:
    return MemoryBroker(name, BrokerOptions())


class Fakes:
    """A node with fake runners, and a client."""

    def __init__(self, node: Node, client: Client) -> None:
        self.node = node
        self.client = client
        assert isinstance(node.runner, FakeRunner)
        self.runner = node.runner

    async def enqueue(self, *ids: str, queue: str = "default") -> list[Any]:
        return [await self.client.enqueue(fine.call(), job_id=i, queue=queue) for i in ids]

    async def running(self, *ids: str) -> None:
        await until(lambda: sorted(self.runner.running) == sorted(ids), f"{ids} running")


@asynccontextmanager
async def node(
    name: str, monkeypatch: pytest.MonkeyPatch, *queues: str, slots: int = 2, hold: bool = True
) -> AsyncIterator[Fakes]:
    monkeypatch.setattr(Node, "_make_runner", lambda _: FakeRunner(hold=hold))
    settings = Settings(publish_timeout=2.0)
    made = Node(broker(name), MODULES, queues or ["default"], slots, settings)
    await made.start()
    async with broker(name) as producer, Client(broker=producer, settings=settings) as client:
        yield Fakes(made, client)
        await made.stop()


@async_test
async def test_stopping_gives_back_and_ends_all(
    queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(queue_name, monkeypatch) as first:
        await first.enqueue("a", "b", "c")
        await first.running("a", "b")
        await asyncio.gather(first.node.stop(), first.node.stop())
        assert first.runner.calls == ["start", "stop"]
        assert first.node.running == 0
        # Its jobs are there for another node.
        async with node(queue_name, monkeypatch, slots=3) as second:
            await second.running("a", "b", "c")


@async_test
async def test_a_drain_waits_for_running_jobs_and_they_can_be_cancelled(
    queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(queue_name, monkeypatch, "one", "two") as on:
        handles = await on.enqueue("a", "b", queue="one") + await on.enqueue("c", queue="two")
        await on.running("a", "b")
        draining = asyncio.ensure_future(on.node.drain(time.monotonic() + 60))
        await until(lambda: on.node.running == 2, "the one that waits given back")
        await on.enqueue("d", queue="one")
        on.runner.finish("a")
        await handles[1].cancel()
        with pytest.raises(JobCancelled):
            await handles[1].result(20)
        assert await handles[0].result(20) == "fine"
        await asyncio.wait_for(draining, 20)
        assert on.runner.ids == ["a", "b"]
        async with node(queue_name, monkeypatch, "one", "two", hold=False):
            assert await handles[2].result(20) == "fine"


@async_test
async def test_a_drain_ends_at_its_deadline(
    queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(queue_name, monkeypatch) as on:
        await on.enqueue("a")
        await on.running("a")
        await asyncio.wait_for(on.node.drain(time.monotonic() + 0.05), 20)
        await on.running("a")


@async_test
async def test_one_fault_of_the_node_costs_no_job(
    queue_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with node(queue_name, monkeypatch, hold=False) as on:
        on.runner.error = OSError("no more descriptors")
        (handle,) = await on.enqueue("a")
        await until(lambda: len(on.runner.jobs) > 1, "another try")
        on.runner.error = None
        assert await handle.result(20) == "fine"
        assert "could not be seen through" in caplog.text


@async_test
async def test_strange_control_messages_are_ignored(
    queue_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with node(queue_name, monkeypatch, hold=False) as on, broker(queue_name) as other:
        await other.publish_control(Message(b"\xc1", TYPE_CONTROL, "a"))
        await other.publish_control(Message(b"\x81\xa2do\xa5dance", TYPE_CONTROL, "a"))
        (handle,) = await on.enqueue("a")
        assert await handle.result(20) == "fine"
        assert "a control message was ignored" in caplog.text


class Broken(MemoryBroker):
    """Fails where ``at`` says."""

    at = ""

    async def start(self) -> None:
        if self.at == "start":
            raise BrokerUnavailable("nobody there")
        await super().start()

    async def consume_control(self, on_message: OnMessage) -> Subscription:
        if self.at == "consume":
            raise BrokerUnavailable("not today")
        return await super().consume_control(on_message)


@pytest.mark.parametrize("at", ["start", "consume"])
@async_test
async def test_a_start_that_fails_leaves_nothing_running(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Node, "_make_runner", lambda _: FakeRunner())
    broken = Broken("x", BrokerOptions())
    broken.at = at
    failing = Node(broken, MODULES, ["default"], 1, Settings())
    with pytest.raises(BrokerUnavailable):
        await failing.start()
    assert isinstance(failing.runner, FakeRunner)
    assert failing.runner.calls == ["start", "stop"]
    assert not broken.connected


@async_test
async def test_modules_that_cannot_be_imported_are_named() -> None:
    worker = Worker("memory://", modules=["support.missing"], settings=Settings())
    with pytest.raises(SandboxUnavailable, match=r"support\.missing"):
        await worker.run()


def test_a_worker_needs_modules_queues_and_slots() -> None:
    with pytest.raises(ConfigurationError, match="module"):
        Worker("memory://", modules=[], settings=Settings())
    with pytest.raises(ConfigurationError, match="queue"):
        Worker("memory://", modules=MODULES, queues=[], settings=Settings())
    with pytest.raises(ConfigurationError, match="concurrency"):
        Worker("memory://", modules=MODULES, concurrency=0, settings=Settings())


@async_test
async def test_draining_a_worker_ends_its_run(queue_name: str) -> None:
    worker = Worker(broker=broker(queue_name), modules=MODULES, concurrency=1, settings=Settings())
    running = asyncio.ensure_future(worker.run())
    await until(lambda: worker.node.runner.tasks, "the node")
    await worker.drain(time.monotonic() + 5)
    await asyncio.wait_for(running, 20)


@async_test
async def test_a_worker_told_to_stop_before_it_is_ready_stops(queue_name: str) -> None:
    class Slow(MemoryBroker):
        async def start(self) -> None:
            await asyncio.Event().wait()

    slow = Slow(queue_name, BrokerOptions())
    worker = Worker(broker=slow, modules=MODULES, concurrency=1, settings=Settings())
    running = asyncio.ensure_future(worker.run())
    await until(lambda: worker.node.runner.tasks, "the zygote")
    worker._on_term()
    await asyncio.wait_for(running, 20)


# --- the runners ---------------------------------------------------------------------------


@asynccontextmanager
async def worker_and_client(name: str, **settings: Any) -> AsyncIterator[tuple[Worker, Client]]:
    found = Settings(**settings)
    worker = Worker(broker=broker(name), modules=MODULES, concurrency=2, settings=found)
    await worker.start()
    try:
        async with broker(name) as producer, Client(broker=producer, settings=found) as client:
            yield worker, client
    finally:
        await worker.stop()


@async_test
async def test_without_sandboxes_jobs_run_in_the_node(
    queue_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker_and_client(queue_name, sandbox_enabled=False) as (worker, client):
        assert LOST in caplog.text
        assert isinstance(worker.node.runner, InlineRunner)
        assert await client.run(jobs.fine.call(21)) == 42
        with pytest.raises(JobRejected, match="untrusted"):
            await client.run(jobs.hostile.call())


@async_test
async def test_untrusted_tasks_are_refused_where_their_guarantees_do_not_hold(
    queue_name: str,
) -> None:
    without = {"sandbox_disable": ("cgroup", "userns", "landlock", "seccomp")}
    async with worker_and_client(queue_name, **without) as (worker, client):
        with pytest.raises(JobRejected, match=r"untrusted.*memory"):
            await client.run(jobs.hostile.call())
        assert "memory" in worker.node.runner.refusal  # type: ignore[attr-defined]
        assert await client.run(jobs.fine.call(1)) == 2


@async_test
async def test_the_fallback_is_there_only_when_asked_for(queue_name: str) -> None:
    async with worker_and_client(queue_name) as (worker, _):
        assert worker.node._fallback is None
    both_off = Settings(sandbox_fallback=True, sandbox_enabled=False)
    assert Node(broker("x"), MODULES, ["q"], 1, both_off)._fallback is None
    name = f"{queue_name}-2"
    async with worker_and_client(name, sandbox_fallback=True) as (worker, client):
        assert isinstance(worker.node._fallback, InlineRunner)
        # Whatever a task does to its sandbox is no reason to let it into the node.
        outcome = await (await client.enqueue(jobs.leave.call(3))).outcome(30)
        assert (outcome.status, outcome.exit_code) == (Status.EXITED, 3)
        stub = FakeRunner(answer=NO_SANDBOX)
        stub.tasks = worker.node.runner.tasks
        worker.node._executor._runner = stub
        assert await client.run(jobs.fine.call(3)) == 6
