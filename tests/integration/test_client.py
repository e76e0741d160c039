"""The client over real brokers: the same story in memory and on RabbitMQ."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.aio import async_test, until
from support.producer import Responder, add, sums
from support.rabbitmq import PrivateNode

from fumehood.broker import Broker, connect
from fumehood.client import Client, PartlyEnqueued
from fumehood.common import (
    BrokerUnavailable,
    ClientClosed,
    JobTimedOut,
    Outcome,
    Status,
    UnknownQueue,
    load_settings,
)
from fumehood.common.envelope import Envelope, read_control

TASKS = """
from fumehood.common import task

@task(name="tests.add")
def add(a, b):
    return a + b
"""


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def url(request: pytest.FixtureRequest) -> str:
    """A broker to try; RabbitMQ is started for the first test that asks for it."""
    if request.param == "memory":
        return "memory://"
    node: PrivateNode = request.getfixturevalue("rabbit")
    return node.url


@asynccontextmanager
async def both_sides(
    url: str, queue: str, answer: Callable[[Envelope], Outcome | None] = sums
) -> AsyncIterator[tuple[Client, Responder, Broker]]:
    async with connect(url) as broker, Client(url) as client:
        node = Responder(broker, answer)
        await node.serve(queue)
        yield client, node, broker


@async_test
async def test_a_value_makes_the_round_trip(url: str, queue_name: str) -> None:
    async with both_sides(url, queue_name) as (client, node, _):
        handle = await client.enqueue(add.call(2, b=3), queue=queue_name, timeout=5, expires=60)
        assert await handle.result(timeout=30) == 5
        assert await client.run(add.call(-1, 1), queue=queue_name) == 0
        assert node.seen[0].timeout == 5.0
        assert node.seen[0].expires is not None
        await client.enqueue(add.call(1, 1), queue=queue_name, reply=False)
        await until(lambda: len(node.seen) == 3, "the job without a reply")
        assert node.seen[2].reply_to == ""


@async_test
async def test_a_failure_makes_the_round_trip(url: str, queue_name: str) -> None:
    def too_late(job: Envelope) -> Outcome:
        return Outcome(Status.TIMED_OUT, job.job_id, job.task, reason="after 5 s")

    async with both_sides(url, queue_name, too_late) as (client, _, _):
        with pytest.raises(JobTimedOut, match="after 5 s"):
            await client.run(add.call(2, 3), queue=queue_name)


@async_test
async def test_a_queue_that_nobody_serves_is_an_error_or_declared(
    url: str, queue_name: str
) -> None:
    async with Client(url) as client:
        with pytest.raises(UnknownQueue, match=queue_name):
            await client.enqueue(add.call(1, 2), queue=queue_name)
        with pytest.raises(PartlyEnqueued) as caught:
            await client.enqueue_many([add.call(1, 2)] * 10, queue=queue_name)
        assert isinstance(caught.value.__cause__, UnknownQueue)
        assert client.pending == 0
    settings = load_settings(declare_queues=True)
    async with Client(url, settings=settings) as client, connect(url) as broker:
        handle = await client.enqueue(add.call(1, 2), queue=queue_name)
        await Responder(broker).serve(queue_name)
        assert await handle.result(timeout=30) == 3


@async_test
async def test_a_pipeline_keeps_its_order(url: str, queue_name: str) -> None:
    async with both_sides(url, queue_name) as (client, node, _):
        calls = [add.call(i, 1) for i in range(2000)]
        handles = await client.enqueue_many(calls, queue=queue_name)
        results = await asyncio.gather(*(handle.result(60) for handle in handles))
        assert results == [i + 1 for i in range(2000)]
        assert [job.job_id for job in node.seen] == [handle.id for handle in handles]


@pytest.mark.slow
@async_test
async def test_ten_thousand_at_once_and_half_of_them_cancelled(url: str, queue_name: str) -> None:
    async with both_sides(url, queue_name) as (client, _, _):
        running = [
            asyncio.ensure_future(client.run(add.call(i, 1), queue=queue_name))
            for i in range(10_000)
        ]
        await until(lambda: client.pending > 100, "the first publishes")
        for given_up in running[::2]:
            given_up.cancel()
        assert await asyncio.gather(*running[1::2]) == list(range(2, 10_001, 2))
        await asyncio.gather(*running[::2], return_exceptions=True)
        running.clear()
        await until(lambda: client.pending == 0, "everything to be forgotten")


@async_test
async def test_cancels_reach_the_nodes(url: str, queue_name: str) -> None:
    async with both_sides(url, queue_name, lambda _: None) as (client, node, _):
        handle = await client.enqueue(add.call(1, 2), queue=queue_name)
        await handle.cancel()
        running = asyncio.ensure_future(client.run(add.call(1, 2), queue=queue_name))
        await until(lambda: len(node.seen) == 2, "both jobs")
        running.cancel()
        await until(lambda: len(node.controls) == 2, "both cancels")
        assert [read_control(message) for message in node.controls] == [
            ("cancel", job.job_id) for job in node.seen
        ]


@async_test
async def test_closing_ends_the_wait_and_not_the_job(url: str, queue_name: str) -> None:
    async with both_sides(url, queue_name, lambda _: None) as (client, node, _):
        handle = await client.enqueue(add.call(1, 2), queue=queue_name)
        await client.stop()
        with pytest.raises(ClientClosed, match=handle.id):
            await handle.result()
        await until(lambda: node.seen, "the job to arrive")


@async_test
async def test_one_client_never_sees_the_outcomes_of_another(url: str, queue_name: str) -> None:
    async with both_sides(url, queue_name) as (client, _, _), Client(url) as other:
        twins = [
            await c.enqueue(add.call(1, 2), queue=queue_name, job_id="x") for c in (client, other)
        ]
        assert [await twin.result(30) for twin in twins] == [3, 3]
        assert not client._replies.ignored
        assert not other._replies.ignored


@pytest.mark.rabbitmq
@async_test
async def test_nobody_at_the_url() -> None:
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        await Client("amqp://127.0.0.1:1/", settings=load_settings(connect_timeout=0.5)).start()
    assert time.monotonic() - began < 5


@pytest.mark.rabbitmq
@pytest.mark.slow
@async_test
async def test_pending_handles_survive_a_broker_that_restarts(
    fresh_rabbit: PrivateNode, queue_name: str
) -> None:
    held: list[Envelope] = []

    def hold(job: Envelope) -> None:
        held.append(job)

    url = fresh_rabbit.url
    async with Client(url) as client:
        async with connect(url) as broker:
            await Responder(broker, hold).serve(queue_name)
            handle = await client.enqueue(add.call(1, 2), queue=queue_name)
            await until(lambda: held, "the job to be taken")
        await asyncio.to_thread(fresh_rabbit.stop)
        await asyncio.to_thread(fresh_rabbit.start)
        assert not handle.done()
        async with connect(url) as broker:
            node = Responder(broker)
            node.patience = 30.0
            await node.serve(queue_name)
            again = await client.enqueue(add.call(1, 2), queue=queue_name, job_id=handle.id)
            assert await handle.result(timeout=60) == await again.result() == 3


@pytest.mark.rabbitmq
def test_the_command_line_waits_for_a_value(
    rabbit: PrivateNode, queue_name: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(TASKS)
    program = (
        "import typer; from fumehood.client.cli import register\n"
        "app = typer.Typer(); app.command('other')(print); register(app); app()"
    )
    command = [sys.executable, "-c", program, "enqueue", "shop.add", "2", "3", "--wait"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "FUMEHOOD_BROKER_URL": rabbit.url,
    }

    async def serve_meanwhile() -> subprocess.CompletedProcess[str]:
        async with connect(rabbit.url) as broker:
            await Responder(broker).serve(queue_name)
            return await asyncio.to_thread(
                subprocess.run,
                [*command, "--queue", queue_name],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

    done = asyncio.run(serve_meanwhile())
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
