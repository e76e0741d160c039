"""``enqueue_many``: checked as a whole, sent as a pipeline, failures told call by call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.aio import async_test, until
from support.producer import StubBroker, add, succeeded

from fumehood.client import Client, PartlyEnqueued
from fumehood.client.batch import WINDOW
from fumehood.common import InvalidArguments, PayloadTooLarge, QueueFull, load_settings
from fumehood.common.arguments import decode_arguments
from fumehood.common.message import Message


@async_test
async def test_all_are_sent_in_order_under_the_same_options() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        handles = await client.enqueue_many(
            (add.call(i, 1) for i in range(1000)), timeout=2, queue="q"
        )
        assert [handle.id for handle in handles] == [job.job_id for job in broker.envelopes]
        assert [decode_arguments(job.arguments)[0] for job in broker.envelopes] == [
            [i, 1] for i in range(1000)
        ]
        assert {(queue, job.timeout) for (queue, _), job in zip(broker.jobs, broker.envelopes)} == {  # noqa: B905
            ("q", 2.0)
        }
        broker.on_reply(succeeded(handles[7].id, 8))
        assert await handles[7].result() == 8
        assert await client.enqueue_many([]) == []


@async_test
async def test_the_number_on_their_way_is_bounded() -> None:
    at_once = most = 0

    async def slowly(_: Message) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    async with Client(broker=StubBroker(slowly)) as client:
        await client.enqueue_many([add.call(1, 2)] * 3 * WINDOW, reply=False)
    assert most == WINDOW


@async_test
async def test_one_bad_call_and_nothing_is_sent() -> None:
    broker = StubBroker()
    untyped: Any = add
    async with Client(broker=broker, settings=load_settings(max_arguments=100)) as client:
        good = [untyped.call(1, 2)] * 3
        with pytest.raises(InvalidArguments, match=r"^calls\[3\]: args\[0\]: ") as caught:
            await client.enqueue_many([*good, untyped.call(object(), 2)])
        assert caught.value.path == "calls[3]"
        with pytest.raises(InvalidArguments, match=r"calls\[3\]: .*add\.call"):
            await client.enqueue_many([*good, untyped])
        with pytest.raises(PayloadTooLarge):
            await client.enqueue_many([*good, untyped.call("x" * 100, 2)])
        with pytest.raises(InvalidArguments, match="timeout"):
            await client.enqueue_many(good, timeout=-1)
        assert (broker.jobs, client.pending) == ([], 0)


@async_test
async def test_what_was_accepted_is_told_call_by_call() -> None:
    async def full_after_five(_: Message) -> None:
        room = len(broker.jobs) < 5
        await asyncio.sleep(0)
        if not room:
            raise QueueFull("no room")

    broker = StubBroker(full_after_five)
    broker_calls = [add.call(i, 1) for i in range(2000)]
    async with Client(broker=broker) as client:
        with pytest.raises(PartlyEnqueued, match=r"QueueFull: no room") as caught:
            await client.enqueue_many(broker_calls)
        told = caught.value
        assert isinstance(told.__cause__, QueueFull)
        accepted = [handle.id for handle in told.handles if handle is not None]
        assert accepted == [message.correlation_id for _, message in broker.jobs]
        assert len(told.handles) == 2000
        assert all(told.handles[index] is None for index in told.errors)
        # One window at most was on its way when the first failed; the rest was never tried.
        assert len(told.errors) <= WINDOW
        assert client.pending == len(accepted)


@async_test
async def test_a_bug_in_an_adapter_is_not_hidden() -> None:
    async def broken(_: Message) -> None:
        raise ZeroDivisionError

    async with Client(broker=StubBroker(broken)) as client:
        with pytest.raises(ExceptionGroup) as caught:
            await client.enqueue_many([add.call(1, 2)])
        assert caught.group_contains(ZeroDivisionError)
        assert client.pending == 0


@async_test
async def test_cancelled_midway_it_leaves_nothing() -> None:
    async def hang(_: Message) -> None:
        await asyncio.Event().wait()

    async with Client(broker=StubBroker(hang)) as client:
        enqueueing = asyncio.ensure_future(client.enqueue_many([add.call(1, 2)] * 1000))
        await until(lambda: client.pending == WINDOW, "a full window")
        enqueueing.cancel()
        await asyncio.wait([enqueueing])
        assert client.pending == 0
