"""The life of a client: start, stop, what both mean for its jobs; and ten thousand at once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from support.aio import async_test, until
from support.producer import Responder, StubBroker, add, succeeded

from fumehood.broker import connect
from fumehood.client import Client, ClientMisused
from fumehood.common import (
    BrokerUnavailable,
    ClientClosed,
    ConfigurationError,
    FumehoodError,
    load_settings,
)
from fumehood.common.message import Message


@async_test
async def test_over_the_memory_broker() -> None:
    async with connect("memory://") as broker, Client("memory://") as client:
        await Responder(broker).serve("default")
        handle = await client.enqueue(add.call(2, 3))
        assert await handle.result(timeout=10) == 5
        assert await client.run(add.call(4, 5)) == 9


@async_test
async def test_the_url_comes_from_the_settings_when_none_is_given() -> None:
    async with Client(settings=load_settings(broker_url="memory://")) as client:
        assert repr(client) == "<Client open, 0 pending>"
    with pytest.raises(ConfigurationError):
        await Client("gopher://").start()


@async_test
async def test_start_and_stop_may_be_repeated() -> None:
    client = Client("memory://")
    await client.start()
    await client.start()
    await asyncio.gather(client.stop(), client.stop())
    await client.stop()
    with pytest.raises(ClientClosed, match="make a new one"):
        await client.start()
    await Client("memory://").stop()


@async_test
async def test_a_broker_passed_in_is_left_running() -> None:
    broker = StubBroker()
    async with Client(broker=broker), Client(broker=broker):
        assert len(set(broker.clients)) == 2
    assert broker.calls == []
    assert broker.replies.closed


@async_test
async def test_a_broker_that_gives_no_replies_is_stopped_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mute(StubBroker):
        async def open_replies(self, client: str, on_message: Any) -> Any:
            raise BrokerUnavailable("no replies today")

    broker = Mute()
    monkeypatch.setattr("fumehood.client.client.connect", lambda *_, **__: broker)
    with pytest.raises(BrokerUnavailable, match="no replies"):
        await Client("memory://").start()
    assert broker.calls == ["start", "stop"]


@async_test
async def test_a_client_that_is_not_started_says_how() -> None:
    client = Client("memory://")
    with pytest.raises(ClientMisused, match="async with Client"):
        await client.enqueue(add.call(1, 2))


@async_test
async def test_another_loop_is_told_so() -> None:
    broker = StubBroker()
    errors: list[BaseException] = []

    async def elsewhere(awaitable: Any) -> None:
        with pytest.raises(ClientMisused, match="another event loop") as caught:
            await awaitable
        errors.append(caught.value)

    async with Client(broker=broker) as client:
        handle = await client.enqueue(add.call(1, 2))
        for make in (
            lambda: client.enqueue(add.call(1, 2)),
            handle.result,
            handle.cancel,
            client.stop,
        ):
            thread = threading.Thread(target=lambda make=make: asyncio.run(elsewhere(make())))
            thread.start()
            thread.join()
        assert len(errors) == 4
        assert not (await client.enqueue(add.call(1, 2))).done()


@async_test
async def test_closing_fails_what_is_pending_and_says_what_that_was() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        handles = [await client.enqueue(add.call(1, 2), job_id=f"job-{i}") for i in range(8)]
        broker.on_reply(succeeded("job-0", 3))
        waiter = asyncio.ensure_future(handles[1].result())
        await asyncio.sleep(0)
    with pytest.raises(
        ClientClosed, match=r"job-1 arrived; .* \(7 were pending: job-1, .*\.\.\.\)"
    ):
        await waiter
    assert await handles[0].result() == 3
    for handle in handles[1:]:
        assert handle.done()
        assert "client closed" in repr(handle)
        with pytest.raises(ClientClosed):
            await handle.outcome()
        await handle.cancel()
    assert broker.controls == []
    for refused in (client.enqueue(add.call(1, 2)), client.run(add.call(1, 2))):
        with pytest.raises(ClientClosed):
            await refused
    with pytest.raises(ClientClosed):
        await client.enqueue_many([add.call(1, 2)])
    # A broker may hand over what was on its way.
    broker.on_reply(succeeded("job-1", 3))


@async_test
async def test_an_enqueue_that_closing_overtakes_does_not_wait_for_ever() -> None:
    gate = asyncio.Event()

    async def hold(_: Message) -> None:
        await gate.wait()

    broker = StubBroker(hold)
    async with Client(broker=broker) as client:
        enqueueing = asyncio.ensure_future(client.enqueue(add.call(1, 2)))
        await asyncio.sleep(0)
    gate.set()
    handle = await enqueueing
    with pytest.raises(ClientClosed):
        await handle.result()


@async_test
async def test_ten_thousand_at_once() -> None:
    async with connect("memory://") as broker, Client("memory://") as client:
        node = Responder(broker)
        await node.serve("default")
        results = await asyncio.gather(*(client.run(add.call(i, 1)) for i in range(10_000)))
        assert results == list(range(1, 10_001))
        assert (client.pending, client._replies._waits) == (0, {})


@async_test
async def test_ten_thousand_callers_cancelled_midway_leave_nothing() -> None:
    gate = asyncio.Event()

    async def hold(_: Message) -> None:
        await gate.wait()

    broker = StubBroker(hold)
    async with Client(broker=broker) as client:
        callers = [asyncio.ensure_future(client.enqueue(add.call(i, 1))) for i in range(10_000)]
        await until(lambda: client.pending == 10_000, "every publish on its way")
        for caller in callers[::2]:
            caller.cancel()
        await asyncio.wait(callers[::2])
        assert client.pending == 5_000
        gate.set()
        handles = await asyncio.gather(*callers[1::2])
        assert (len(handles), client.pending) == (5_000, 5_000)
        for job_id in [handle.id for handle in handles[::2]]:
            broker.on_reply(succeeded(job_id, 0))
        assert client.pending == 2_500
        handles.clear()
        callers.clear()
        # The loop itself holds finished tasks until its next turn.
        await until(lambda: client.pending == 0, "the abandoned handles to go")


def test_every_error_of_a_client_is_one_of_ours() -> None:
    from fumehood.client import PartlyEnqueued

    assert issubclass(ClientMisused, FumehoodError)
    assert issubclass(PartlyEnqueued, FumehoodError)


def test_the_package_exports_what_it_says() -> None:
    import fumehood.client

    for name in fumehood.client.__all__:
        assert getattr(fumehood.client, name).__name__ == name
    untyped: Any = fumehood.client
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = untyped.nothing
