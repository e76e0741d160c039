"""A worker and a client together, over both brokers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support import jobs
from support.aio import async_test, until
from support.rabbitmq import PrivateNode

from fumehood.broker import connect
from fumehood.client import Client
from fumehood.common import Blame, Settings, Status
from fumehood.common.arguments import encode_arguments
from fumehood.common.envelope import Envelope
from fumehood.common.errors import (
    JobCancelled,
    JobCrashed,
    JobExited,
    JobExpired,
    JobFailed,
    JobLimitExceeded,
    JobTimedOut,
)
from fumehood.worker import Worker

PATIENCE = 60.0  # seconds for what takes milliseconds
SETTINGS = Settings(max_timeout=600.0, sandbox_default_timeout=60.0)


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def url(request: pytest.FixtureRequest, queue_name: str) -> str:
    """A broker to try; RabbitMQ is started for the first test that asks for it."""
    if request.param == "memory":
        return f"memory://{queue_name}"
    node: PrivateNode = request.getfixturevalue("rabbit")
    return node.url


@asynccontextmanager
async def serving(url: str, *queues: str, concurrency: int = 2) -> AsyncIterator[Worker]:
    worker = Worker(
        url, modules=["support.jobs"], queues=queues, concurrency=concurrency, settings=SETTINGS
    )
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


class Asking:
    """A client that speaks to one queue."""

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        self._queue = queue

    async def run(self, call: Any, **options: Any) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self._client.run(call, queue=self._queue, **options)

    async def enqueue(self, call: Any, **options: Any) -> Any:
        return await self._client.enqueue(call, queue=self._queue, **options)


@asynccontextmanager
async def pair(url: str, queue: str, concurrency: int = 2) -> AsyncIterator[tuple[Worker, Asking]]:
    async with (
        serving(url, queue, concurrency=concurrency) as worker,
        Client(url, settings=SETTINGS) as client,
    ):
        yield worker, Asking(client, queue)


@async_test
async def test_values_and_errors_make_the_round_trip(url: str, queue_name: str) -> None:
    async with pair(url, queue_name) as (worker, client):
        assert await client.run(jobs.fine.call(21)) == 42
        assert await client.run(jobs.doze.call(0.01)) == "rested"
        with pytest.raises(JobFailed, match="LookupError: no such thing") as failed:
            await client.run(jobs.fail.call("no such thing"))
        assert failed.value.outcome.error is not None
        assert "support/jobs.py" in failed.value.outcome.error.traceback
        with pytest.raises(JobCrashed, match="SIGSEGV"):
            await client.run(jobs.crash.call())
        with pytest.raises(JobExited, match="code 3"):
            await client.run(jobs.leave.call(3))
        assert await client.run(jobs.hostile.call()) == "it ran"
        handle = await client.enqueue(jobs.write.call("hello"))
        outcome = await handle.outcome(PATIENCE)
        assert (outcome.stdout, outcome.node) == (b"hello\n", worker.node.name)
        assert outcome.task == jobs.write.name
        assert (outcome.job_id, outcome.attempt) == (handle.id, 1)


@async_test
async def test_timeouts_cancels_and_expiries(url: str, queue_name: str) -> None:
    async with pair(url, queue_name, concurrency=1) as (worker, client):
        began = time.monotonic()
        with pytest.raises(JobTimedOut, match=r"0\.3 s"):
            await client.run(jobs.nap.call(300), timeout=0.3)
        assert time.monotonic() - began < 30
        running = await client.enqueue(jobs.nap.call(300))
        await until(lambda: worker.node.running == 1, "the job at the node")
        waiting = await client.enqueue(jobs.fine.call(1))
        late = await client.enqueue(jobs.fine.call(2), expires=0.05)
        await waiting.cancel()
        await asyncio.sleep(0.06)  # what `late` had
        await running.cancel()
        with pytest.raises(JobCancelled):
            await running.result(PATIENCE)
        with pytest.raises(JobCancelled, match="before it was started"):
            await waiting.result(PATIENCE)
        with pytest.raises(JobExpired):
            await late.result(PATIENCE)
        assert await client.run(jobs.fine.call(3), expires=300) == 6


@pytest.mark.parametrize("size", [64 << 10, 1 << 20, 8 << 20], ids=["64KiB", "1MiB", "8MiB"])
@async_test
async def test_large_arguments_and_values(url: str, queue_name: str, size: int) -> None:
    room = 100  # for what the encoding adds
    async with pair(url, queue_name) as (_, client):
        assert await client.run(jobs.weigh.call(bytes(size - room))) == size - room
        assert await client.run(jobs.fill.call(size - room)) == bytes(size - room)
        if size == SETTINGS.max_result:
            with pytest.raises(JobLimitExceeded, match="result limit"):
                await client.run(jobs.fill.call(size + 1))


@async_test
async def test_a_job_without_a_reply_runs(url: str, queue_name: str, tmp_path: Any) -> None:
    async with pair(url, queue_name) as (worker, client):
        await client.enqueue(jobs.trail.call(str(tmp_path), 0.0), reply=False)
        await until(lambda: len(list(tmp_path.glob("end-*"))) == 1, "the job")
        await until(lambda: worker.node.running == 0, "its end")


@async_test
async def test_one_worker_serves_two_queues(url: str, queue_name: str) -> None:
    one, two = f"{queue_name}-one", f"{queue_name}-two"
    async with serving(url, one, two, one) as worker, Client(url, settings=SETTINGS) as client:
        calls = [
            client.run(jobs.fine.call(n), queue=queue) for n in range(20) for queue in (one, two)
        ]
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*calls) == [n * 2 for n in range(20) for _ in "12"]
        await until(lambda: worker.node.running == 0, "all settled")


@async_test
async def test_concurrency_bounds_what_runs_and_what_is_taken(
    url: str, queue_name: str, tmp_path: Any
) -> None:
    async with pair(url, queue_name, concurrency=2) as (worker, client):
        handles = [await client.enqueue(jobs.trail.call(str(tmp_path), 0.3)) for _ in range(5)]
        most = 0

        def watch() -> bool:
            nonlocal most
            started, ended = (len(list(tmp_path.glob(f"{what}-*"))) for what in ("start", "end"))
            most = max(most, worker.node.running)
            assert started - ended <= 2 + 1  # one may end between the two looks
            return all(handle.done() for handle in handles)

        await until(watch, "all jobs", timeout=PATIENCE)
        assert most == 2  # prefetch: the other jobs stay where other nodes can take them


@async_test
async def test_two_workers_share_a_queue(url: str, queue_name: str) -> None:
    async with (
        serving(url, queue_name, concurrency=1) as one,
        serving(url, queue_name, concurrency=1) as two,
        Client(url, settings=SETTINGS) as client,
    ):
        handles = [await client.enqueue(jobs.nap.call(0.1), queue=queue_name) for _ in range(6)]
        outcomes = [await handle.outcome(PATIENCE) for handle in handles]
        assert {outcome.node for outcome in outcomes} == {one.node.name, two.node.name}


@async_test
async def test_what_a_foreign_producer_gets_wrong_is_answered(url: str, queue_name: str) -> None:
    from fumehood.common.envelope import outcome_from_message

    outcomes = []
    async with serving(url, queue_name), connect(url) as producer:
        address, _ = await producer.open_replies(
            "foreign", lambda message: outcomes.append(outcome_from_message(message))
        )
        body = encode_arguments(jobs.fine.call(1), 1000)
        wrong = [
            Envelope("unknown", "support.jobs.missing", body, reply_to=address),
            Envelope("timeout", jobs.fine.name, body, timeout=601.0, reply_to=address),
            Envelope("body", jobs.fine.name, b"\xc1", reply_to=address),
            Envelope("right", jobs.fine.name, body, reply_to=address),
        ]
        for envelope in wrong:
            await producer.publish_job(queue_name, envelope.to_message())
        await until(lambda: len(outcomes) == 4, "four outcomes")
        found = {outcome.job_id: outcome for outcome in outcomes}
        assert found.pop("right").value == 2
        assert {o.status for o in found.values()} == {Status.REJECTED}
        assert {o.blame for o in found.values()} == {Blame.POLICY}
