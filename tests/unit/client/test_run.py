"""``run``: enqueue and wait; a caller that is cancelled takes its job along."""

from __future__ import annotations

import asyncio

import pytest
from support.aio import async_test, until
from support.producer import StubBroker, add, ended, succeeded

from fumehood.client import Client
from fumehood.client.canceller import Canceller
from fumehood.common import BrokerUnavailable, JobTimedOut, Status
from fumehood.common.message import Message


@async_test
async def test_run_returns_the_value_or_raises() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        running = asyncio.ensure_future(client.run(add.call(1, 2), job_id="a", timeout=3))
        await until(lambda: broker.jobs, "the publish")
        broker.on_reply(succeeded("a", 3))
        assert await running == 3
        assert broker.envelopes[0].timeout == 3.0
        running = asyncio.ensure_future(client.run(add.call(1, 2), job_id="b"))
        await until(lambda: len(broker.jobs) == 2, "the publish")
        broker.on_reply(ended("b", Status.TIMED_OUT))
        with pytest.raises(JobTimedOut):
            await running
    assert broker.controls == []


@async_test
async def test_a_cancelled_run_cancels_its_job() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await client.run(add.call(1, 2))
        await until(lambda: broker.controls, "the cancel")
        assert broker.cancelled == [broker.envelopes[0].job_id]
        assert client.pending == 0


@async_test
async def test_a_run_cancelled_while_publishing_cancels_what_may_have_been_accepted() -> None:
    async def hang(_: Message) -> None:
        await asyncio.Event().wait()

    broker = StubBroker(hang)
    async with Client(broker=broker) as client:
        running = asyncio.ensure_future(client.run(add.call(1, 2), job_id="maybe"))
        await until(lambda: client.pending, "the publish")
        running.cancel()
        await asyncio.wait([running])
        await until(lambda: broker.controls, "the cancel")
    assert broker.cancelled == ["maybe"]


@async_test
async def test_a_job_that_somebody_else_waits_for_is_left_alone() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        both = [asyncio.ensure_future(client.run(add.call(1, 2), job_id="twin")) for _ in "ab"]
        await until(lambda: client._replies._waits, "both to wait")
        both[0].cancel()
        await asyncio.wait([both[0]])
        broker.on_reply(succeeded("twin", 3))
        assert await both[1] == 3
    assert broker.controls == []


@async_test
async def test_closing_still_sends_the_cancels_that_wait() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        running = [asyncio.ensure_future(client.run(add.call(1, 2))) for _ in range(100)]
        await until(lambda: len(client._replies._waits) == 100, "all to wait")
        for each in running:
            each.cancel()
        await asyncio.wait(running)
    assert sorted(broker.cancelled) == sorted(job.job_id for job in broker.envelopes)


@async_test
async def test_cancels_are_bounded_in_tasks_and_survive_errors() -> None:
    at_work = most = 0
    sent: list[str] = []

    async def send(job_id: str) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1
        sent.append(job_id)
        raise BrokerUnavailable("down")

    canceller = Canceller(send)
    for number in range(1000):
        canceller.add(str(number))
    await until(lambda: len(sent) == 1000, "all cancels")
    assert most == 8
    await canceller.close()


@async_test
async def test_closing_does_not_wait_for_a_broker_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fumehood.client.canceller._GRACE", 0.01)

    async def hang(_: str) -> None:
        await asyncio.Event().wait()

    canceller = Canceller(hang)
    for number in range(20):
        canceller.add(str(number))
    await asyncio.sleep(0)
    await canceller.close()
    assert not canceller._senders
