"""What ``enqueue`` sends, and what it refuses to send."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from support.aio import async_test
from support.producer import StubBroker, add

from fumehood.client import Client
from fumehood.common import (
    BrokerUnavailable,
    InvalidArguments,
    Limits,
    PayloadTooLarge,
    QueueFull,
    UnknownQueue,
    load_settings,
    task,
)
from fumehood.common.arguments import decode_arguments
from fumehood.common.message import Message


@task(name="tests.plain", queue="slow", limits=Limits(output=100))
async def plain() -> None: ...


@async_test
async def test_a_job_carries_the_call_and_what_the_task_declares() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        handle = await client.enqueue(add.call(2, b=3))
        await client.enqueue(plain.call())
    (queue, message), (other, _) = broker.jobs
    job, second = broker.envelopes
    assert (queue, other) == ("default", "slow")
    assert (job.job_id, job.task, job.timeout) == (handle.id, "tests.add", 7.0)
    assert job.reply_to == message.reply_to == f"user.{broker.clients[0]}"
    assert decode_arguments(job.arguments) == ([2], {"b": 3})
    assert (job.expires, job.limits, job.trace) == (None, Limits(), {})
    assert second.timeout == client.settings.sandbox_default_timeout
    assert second.limits == Limits(output=100)


@async_test
async def test_options_of_the_call_come_first() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        await client.enqueue(plain.call(), timeout=2, queue="q", job_id="order 1", expires=60)
    assert broker.jobs[0][0] == "q"
    job = broker.envelopes[0]
    assert (job.timeout, job.job_id) == (2.0, "order 1")
    assert job.expires == pytest.approx((time.time() + 60) * 1000, abs=5000)


@async_test
async def test_limits_that_are_asked_for_are_capped_and_others_left_to_the_node() -> None:
    broker = StubBroker()
    async with Client(broker=broker, settings=load_settings(max_output=1000)) as client:
        await client.enqueue(plain.call(), limits=Limits(output=5000))
        await client.enqueue(plain.call(), limits=Limits(result=50))
    assert [job.limits for job in broker.envelopes] == [
        Limits(output=1000),
        Limits(output=100, result=50),
    ]


@async_test
async def test_an_aware_datetime_expires_at_that_moment() -> None:
    broker = StubBroker()
    moment = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    async with Client(broker=broker) as client:
        await client.enqueue(add.call(1, 2), expires=moment)
    assert broker.envelopes[0].expires == 1893492000000


BAD: list[tuple[dict[str, Any], str]] = [
    ({"timeout": 0}, "above 0"),
    ({"timeout": -1}, "above 0"),
    ({"timeout": float("nan")}, "finite"),
    ({"timeout": True}, "number"),
    ({"timeout": "5"}, "number"),
    ({"timeout": 101}, "max_timeout"),
    ({"expires": 0}, "above 0"),
    ({"expires": float("inf")}, "finite"),
    ({"expires": "soon"}, "aware datetime"),
    ({"expires": 1e300}, "outside"),
    ({"expires": datetime(2030, 1, 1)}, "time zone"),  # noqa: DTZ001
    ({"expires": datetime(1930, 1, 1, tzinfo=UTC)}, "outside"),
    ({"job_id": ""}, "printable"),
    ({"job_id": "x" * 129}, "printable"),
    ({"job_id": "line\n"}, "printable"),
    ({"job_id": "größe"}, "printable"),
    ({"job_id": 5}, "text"),
    ({"queue": ""}, "queue"),
    ({"queue": "a.*"}, "queue"),
    ({"limits": 5}, "Limits"),
]


@pytest.mark.parametrize(("options", "why"), BAD, ids=[repr(o)[:50] for o, _ in BAD])
@async_test
async def test_a_bad_option_is_refused_before_anything_is_sent(
    options: dict[str, Any], why: str
) -> None:
    broker = StubBroker()
    settings = load_settings(max_timeout=100)
    async with Client(broker=broker, settings=settings) as client:
        with pytest.raises(InvalidArguments, match=why):
            await client.enqueue(add.call(1, 2), **options)
        assert (broker.jobs, client.pending) == ([], 0)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (lambda: add, r"add\.call\(\.\.\.\)"),
        (lambda: len, r"@task, then len\.call"),
        (plain, r"not a coroutine: write plain\.call"),
        (lambda: "tests.add", r"not str: write task\.call"),
    ],
    ids=["task", "function", "coroutine", "name"],
)
@async_test
async def test_only_a_call_can_be_enqueued(given: Any, remedy: str) -> None:
    async with Client(broker=StubBroker()) as client:
        with pytest.raises(InvalidArguments, match=remedy):
            await client.enqueue(given())


@async_test
async def test_arguments_that_cannot_be_carried_are_named() -> None:
    broker = StubBroker()
    async with Client(broker=broker, settings=load_settings(max_arguments=100)) as client:
        untyped: Any = add
        with pytest.raises(InvalidArguments, match=r"args\[1\]"):
            await client.enqueue(untyped.call(1, object()))
        with pytest.raises(PayloadTooLarge, match="max_arguments"):
            await client.enqueue(untyped.call(1, "x" * 100))
    assert broker.jobs == []


@pytest.mark.parametrize("error", [BrokerUnavailable, QueueFull, UnknownQueue])
@async_test
async def test_an_error_of_the_broker_reaches_the_caller_and_leaves_nothing(
    error: type[Exception],
) -> None:
    async def refuse(_: Message) -> None:
        raise error("no")

    async with Client(broker=StubBroker(refuse)) as client:
        with pytest.raises(error, match="no") as caught:
            await client.enqueue(add.call(1, 2))
        assert caught.value is not None  # its traceback is alive, and keeps nothing pending
        assert client.pending == 0


@async_test
async def test_without_a_reply_there_is_nothing_to_wait_for() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as client:
        handle = await client.enqueue(add.call(1, 2), reply=False)
        assert broker.envelopes[0].reply_to == ""
        assert (client.pending, handle.done()) == (0, False)
        with pytest.raises(InvalidArguments, match="reply=False"):
            await handle.result()
        with pytest.raises(InvalidArguments, match="reply=False"):
            await handle.outcome(timeout=1)
        await handle.cancel()
        assert broker.cancelled == [handle.id]
        assert "no reply" in repr(handle)


@async_test
async def test_queues_are_declared_once_where_the_settings_say_so() -> None:
    broker = StubBroker()
    async with Client(broker=broker, settings=load_settings(declare_queues=True)) as client:
        await asyncio.gather(*(client.enqueue(add.call(1, 2)) for _ in range(50)))
        await client.enqueue_many([plain.call(), add.call(1, 2)])
    assert broker.declared == ["default", "slow"]


@async_test
async def test_a_queue_that_has_gone_is_declared_again() -> None:
    async def refuse(_: Message) -> None:
        raise UnknownQueue("gone")

    broker = StubBroker()
    async with Client(broker=broker, settings=load_settings(declare_queues=True)) as client:
        await client.enqueue(add.call(1, 2))
        broker.publish = refuse
        with pytest.raises(UnknownQueue):
            await client.enqueue(add.call(1, 2))
        broker.publish = None
        await client.enqueue(add.call(1, 2))
    assert broker.declared == ["default", "default"]


@async_test
async def test_ids_are_unique_and_sort_by_time() -> None:
    broker = StubBroker()
    async with Client(broker=broker) as one, Client(broker=broker) as other:
        handles = [await c.enqueue(add.call(1, 2)) for _ in range(500) for c in (one, other)]
    mine = [handle.id for handle in handles[::2]]
    assert len({handle.id for handle in handles}) == 1000
    assert mine == sorted(mine)


@async_test
async def test_the_current_span_travels_with_the_job() -> None:
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        TraceState,
        use_span,
    )

    span = SpanContext(0xABC, 0xDEF, False, TraceFlags(1), TraceState([("vendor", "x")]))
    broker = StubBroker()
    async with Client(broker=broker) as client:
        with use_span(NonRecordingSpan(span)):
            await client.enqueue(add.call(1, 2))
        await client.enqueue(add.call(1, 2))
    inside, outside = broker.envelopes
    assert inside.trace == {
        "traceparent": "00-00000000000000000000000000000abc-0000000000000def-01",
        "tracestate": "vendor=x",
    }
    assert outside.trace == {}


def test_enqueueing_imports_no_telemetry() -> None:
    code = (
        "import sys; from fumehood.client.trace import current_trace\n"
        "assert not current_trace()\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
