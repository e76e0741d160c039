"""What a handle tells, to whom, and what stays behind when it is gone."""

from __future__ import annotations

import asyncio
import gc
import logging
from dataclasses import dataclass
from typing import Any

import pytest
from support.aio import async_test, until
from support.producer import StubBroker, add, ended, succeeded

from fumehood.client import Client, JobHandle
from fumehood.common import (
    ErrorInfo,
    JobCancelled,
    JobError,
    JobFailed,
    JobTimedOut,
    Outcome,
    Status,
    task,
)
from fumehood.common.errors import DecodeError
from fumehood.common.message import TYPE_CONTROL, TYPE_OUTCOME, Message


@dataclass(frozen=True)
class Point:
    x: int
    y: int


@task(name="tests.point")
def point() -> Point:
    return Point(1, 2)


@async_test
async def test_a_value_comes_back_as_the_annotation_says() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        handle = await client.enqueue(point.call())
        assert not handle.done()
        broker.on_reply(succeeded(handle.id, Point(3, 4)))
        assert handle.done()
        assert await handle.result() == Point(3, 4)
        assert await handle.result() == Point(3, 4)
        assert (await handle.outcome()).value == {"x": 3, "y": 4}
        assert handle.task is point


@async_test
async def test_a_value_that_does_not_fit_is_a_clear_error() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        handle = await client.enqueue(point.call())
        broker.on_reply(succeeded(handle.id, {"z": 1}))
        with pytest.raises(DecodeError, match=r"tests\.point .* does not fit its annotation"):
            await handle.result()
        damaged = await client.enqueue(add.call(1, 2))
        outcome = Outcome(Status.SUCCEEDED, damaged.id, value_bytes=b"\xc1")
        broker.on_reply(ended(damaged.id, outcome.status, value_bytes=outcome.value_bytes))
        with pytest.raises(DecodeError):
            await damaged.result()


@async_test
async def test_a_job_that_failed_raises_its_own_error_each_time() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        handle = await client.enqueue(add.call(1, 2))
        error = ErrorInfo("ValueError", "bad", "Traceback ...")
        broker.on_reply(ended(handle.id, Status.FAILED, error=error))
        for _ in range(2):
            with pytest.raises(JobFailed, match="ValueError: bad") as caught:
                await handle.result()
            assert caught.value.outcome.error == error
        assert (await handle.outcome()).status is Status.FAILED


@async_test
async def test_every_status_ends_the_wait() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        for status in Status:
            handle = await client.enqueue(add.call(1, 2))
            broker.on_reply(ended(handle.id, status))
            if status is not Status.SUCCEEDED:
                with pytest.raises(JobError):
                    await handle.result()
            assert (await handle.outcome()).status is status
            assert str(status) in repr(handle)


@async_test
async def test_running_out_of_patience_is_not_the_jobs_timeout() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        handle = await client.enqueue(add.call(1, 2))
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError, match="the job goes on") as caught:
                await handle.result(timeout=timeout)
            assert not isinstance(caught.value, JobError)
        assert (handle.done(), broker.controls, client.pending) == (False, [], 1)
        broker.on_reply(succeeded(handle.id, 3))
        assert await handle.result(timeout=0) == 3
        late = await client.enqueue(add.call(1, 2))
        broker.on_reply(ended(late.id, Status.TIMED_OUT))
        with pytest.raises(JobTimedOut):
            await late.result()


async def waiting(*waits: Any) -> list[asyncio.Task[Any]]:
    """Tasks that have come as far as they can."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


@async_test
async def test_many_wait_on_one_handle_and_some_give_up() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        handle = await client.enqueue(add.call(1, 2))
        tasks = await waiting(*(handle.result() for _ in range(10)))
        for given_up in tasks[::2]:
            given_up.cancel()
        await asyncio.wait(tasks[::2])
        assert not handle.done()
        broker.on_reply(succeeded(handle.id, 3))
        assert await asyncio.gather(*tasks[1::2]) == [3] * 5
        assert await handle.result() == 3
        assert client._replies._waits == {}


@async_test
async def test_cancel_asks_the_nodes_until_the_job_is_done() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        handle = await client.enqueue(add.call(1, 2))
        await handle.cancel()
        await handle.cancel()
        assert broker.cancelled == [handle.id] * 2
        assert all(message.type == TYPE_CONTROL for message in broker.controls)
        broker.on_reply(ended(handle.id, Status.CANCELLED))
        await handle.cancel()
        assert len(broker.controls) == 2
        with pytest.raises(JobCancelled):
            await handle.result()


@async_test
async def test_one_id_twice_is_one_job_and_its_first_outcome_wins() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        first = await client.enqueue(add.call(1, 2), job_id="twin")
        second = await client.enqueue(add.call(1, 2), job_id="twin")
        assert client.pending == 1
        broker.on_reply(succeeded("twin", 3))
        broker.on_reply(succeeded("twin", 4))
        assert (await first.result(), await second.result()) == (3, 3)
        third = await client.enqueue(add.call(1, 2), job_id="twin")
        assert not third.done()
        broker.on_reply(succeeded("twin", 5))
        assert (await first.result(), await third.result()) == (3, 5)


@async_test
async def test_a_twin_that_cannot_be_sent_leaves_the_first_alone() -> None:
    async def refuse(_: Message) -> None:
        raise OSError("a bug in an adapter")

    broker = StubBroker()
    async with Client(broker=broker) as client:
        first = await client.enqueue(add.call(1, 2), job_id="twin")
        broker.publish = refuse
        with pytest.raises(OSError, match="a bug"):
            await client.enqueue(add.call(1, 2), job_id="twin")
        broker.on_reply(succeeded("twin", 3))
        assert await first.result() == 3


NONSENSE = [
    Message(b"\xc1", TYPE_OUTCOME, "mine"),
    Message(b"\x93\x01\x02\x03", TYPE_OUTCOME, "mine"),
    Message(b"\x81\xa6status\xa4gone", TYPE_OUTCOME, "mine"),
    Message(b"", TYPE_OUTCOME, "mine"),
    Message(b"", "surprise", "mine"),
    Message(b"", TYPE_OUTCOME, ""),
    succeeded("of somebody else"),
]


@async_test
async def test_nonsense_on_the_reply_address_is_counted_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = StubBroker()
    with caplog.at_level(logging.WARNING, "fumehood"):
        async with Client(broker=broker) as client:
            handle = await client.enqueue(add.call(1, 2), job_id="mine")
            for _ in range(100):
                for message in NONSENSE:
                    broker.on_reply(message)
            assert not handle.done()
            broker.on_reply(succeeded("mine", 3))
            assert await handle.result() == 3
            assert client._replies.ignored == {"malformed": 500, "unknown": 200}
    assert len(caplog.records) == 1


@async_test
async def test_an_abandoned_handle_leaves_nothing_and_its_outcome_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = StubBroker()
    with caplog.at_level(logging.WARNING):
        async with Client(broker=broker) as client:
            handle = await client.enqueue(add.call(1, 2))
            answer = ended(handle.id, Status.FAILED)
            failed = await client.enqueue(add.call(1, 2))
            broker.on_reply(ended(failed.id, Status.CRASHED))
            assert client.pending == 1
            del handle, failed
            assert client.pending == 0
            broker.on_reply(answer)
            assert client._replies.ignored == {"late": 1}
        gc.collect()
    assert caplog.records == []


@async_test
async def test_a_waiting_task_that_nobody_holds_is_not_collected() -> None:
    broker = StubBroker()
    results: list[int] = []

    async def forget_me(client: Client) -> None:
        results.append(await client.run(add.call(1, 2)))

    async with Client(broker=broker) as client:
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(forget_me(client)))
        await until(lambda: client._replies._waits, "the wait")
        gc.collect()
        broker.on_reply(succeeded(broker.envelopes[0].job_id, 3))
        await waiting()
    assert results == [3]


@async_test
async def test_an_outcome_may_overtake_the_confirm() -> None:
    async def answer_first(message: Message) -> None:
        broker.on_reply(succeeded(message.correlation_id, 3))
        await asyncio.sleep(0)

    broker = StubBroker(answer_first)
    async with Client(broker=broker) as client:
        handle: JobHandle[int] = await client.enqueue(add.call(1, 2))
        assert handle.done()
        assert await handle.result() == 3
