"""One suite for every broker adapter: what ``fumehood.broker.interface`` promises."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from itertools import count

import pytest
from support.aio import async_test, until

from fumehood.broker import Broker, Delivery, connect
from fumehood.broker.options import BrokerOptions
from fumehood.common.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidArguments,
    PayloadTooLarge,
    QueueFull,
    UnknownQueue,
)
from fumehood.common.message import Message

_names = count(1)

Connect = Callable[..., Broker]


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def broker(kind: str, request: pytest.FixtureRequest) -> Connect:
    """Give handles on one broker: ``broker()``, with options by keyword."""
    if kind == "memory":
        url = f"memory://conformance-{next(_names)}"
    else:
        url = request.getfixturevalue("rabbit").url
    return lambda **options: connect(url, options=BrokerOptions(**options))


@pytest.fixture
def queue() -> str:
    return f"conformance.q-{next(_names)}"


def job(body: bytes = b"body", **fields: object) -> Message:
    return Message(body, "job", **fields)  # type: ignore[arg-type]


class Inbox(list[Delivery]):
    """Collects deliveries without settling them."""

    def __init__(self, *, ack: bool = False) -> None:
        super().__init__()
        self.ack = ack

    def __call__(self, delivery: Delivery) -> None:
        self.append(delivery)
        if self.ack:
            delivery.ack()

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.message.body for delivery in self]

    async def has(self, number: int, timeout: float = 20.0) -> None:
        await until(lambda: len(self) >= number, f"{number} deliveries", timeout=timeout)


async def is_empty(handle: Broker, queue: str) -> bool:
    """Whether a new consumer finds nothing; a marker proves that it looked."""
    inbox = Inbox(ack=True)
    await handle.publish_job(queue, job(b"marker"))
    await handle.consume_jobs(queue, 10, inbox)
    await inbox.has(1)
    return inbox.bodies == [b"marker"]


@async_test
async def test_a_published_job_arrives_whole_and_is_gone_after_its_ack(
    broker: Connect, queue: str
) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        sent = job(b"\x00\xffbody", correlation_id="id-1", reply_to="a.b", headers={"timeout": 0.1})
        await one.publish_job(queue, sent)
        inbox = Inbox()
        subscription = await one.consume_jobs(queue, 10, inbox)
        await inbox.has(1)
        delivery = inbox[0]
        got = delivery.message
        assert (got.body, got.type, got.correlation_id) == (sent.body, "job", "id-1")
        assert (got.reply_to, got.content_type) == ("a.b", sent.content_type)
        assert got.headers == {"timeout": 0.1}
        assert got.message_id
        assert (delivery.queue, delivery.redelivered, delivery.acquired_count) == (queue, False, 0)
        delivery.ack()
        await subscription.close()
        assert await is_empty(one, queue)


@async_test
async def test_jobs_arrive_in_the_order_in_which_they_were_published(
    broker: Connect, queue: str
) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        bodies = [str(number).encode() for number in range(200)]
        await asyncio.gather(*(one.publish_job(queue, job(body)) for body in bodies))
        inbox = Inbox(ack=True)
        await one.consume_jobs(queue, 7, inbox)
        await inbox.has(200)
        assert inbox.bodies == bodies


@async_test
async def test_message_ids_are_new_for_every_publish(broker: Connect, queue: str) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        message = job(message_id="mine")
        await asyncio.gather(*(one.publish_job(queue, message) for _ in range(5)))
        inbox = Inbox(ack=True)
        await one.consume_jobs(queue, 5, inbox)
        await inbox.has(5)
        assert len({delivery.message.message_id for delivery in inbox}) == 5


@async_test
async def test_no_more_than_prefetch_are_unsettled(broker: Connect, queue: str) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        inbox = Inbox()
        await one.consume_jobs(queue, 3, inbox)
        for number in range(10):
            await one.publish_job(queue, job(str(number).encode()))
        for settled in range(7):
            await inbox.has(settled + 3)
            # A second queue's traffic passes before we look: enough time for a fourth to come.
            assert await is_empty_elsewhere(one)
            assert len(inbox) == settled + 3
            inbox[settled].ack()
        await inbox.has(10)


async def is_empty_elsewhere(handle: Broker) -> bool:
    other = f"conformance.other-{next(_names)}"
    await handle.declare_queue(other)
    return await is_empty(handle, other)


@async_test
async def test_acks_out_of_order_settle_exactly_what_they_name(broker: Connect, queue: str) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        for number in range(20):
            await one.publish_job(queue, job(str(number).encode()))
        inbox = Inbox()
        first = broker()
        await first.start()
        await first.consume_jobs(queue, 20, inbox)
        await inbox.has(20)
        for index in (0, 1, 2, 4, 5, 9, 19, 3):
            inbox[index].ack()
        await asyncio.sleep(0)
        inbox[18].ack()
        await first.stop()
        rest = Inbox(ack=True)
        await one.consume_jobs(queue, 20, rest)
        await rest.has(11)
        expected = {b"%d" % number for number in (6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17)}
        assert set(rest.bodies) == expected
        assert len(rest) == 11


@pytest.mark.parametrize("how", ["give_back", "reject"])
@async_test
async def test_what_is_returned_comes_again_and_says_so(
    broker: Connect, queue: str, how: str
) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        await one.publish_job(queue, job(b"again", correlation_id="id-2", headers={"x": 1.5}))
        inbox = Inbox()
        await one.consume_jobs(queue, 5, inbox)
        for round_number in range(4):
            await inbox.has(round_number + 1)
            delivery = inbox[round_number]
            assert delivery.redelivered == (round_number > 0)
            assert delivery.acquired_count == round_number
            assert delivery.message.body == b"again"
            assert delivery.message.correlation_id == "id-2"
            assert delivery.message.headers["x"] == 1.5
            getattr(delivery, how)()
        await inbox.has(5)
        inbox[4].ack()


@async_test
async def test_a_queue_that_nobody_declared_is_unknown(broker: Connect, queue: str) -> None:
    async with broker() as one:
        with pytest.raises(UnknownQueue, match=queue):
            await one.publish_job(queue, job())
        with pytest.raises(UnknownQueue, match=queue):
            await one.consume_jobs(queue, 1, Inbox())
        await one.declare_queue(queue)
        await one.publish_job(queue, job())


@async_test
async def test_unknown_and_known_queues_published_together_get_their_own_answers(
    broker: Connect, queue: str
) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        targets = [queue if number % 3 else f"{queue}.gone" for number in range(90)]
        answers = await asyncio.gather(
            *(one.publish_job(target, job()) for target in targets), return_exceptions=True
        )
        for target, answer in zip(targets, answers, strict=True):
            assert answer is None if target == queue else isinstance(answer, UnknownQueue)


@async_test
async def test_declaring_twice_is_fine(broker: Connect, queue: str) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        await one.publish_job(queue, job())
        await one.declare_queue(queue)
        inbox = Inbox(ack=True)
        await one.consume_jobs(queue, 1, inbox)
        await inbox.has(1)


@async_test
async def test_a_queue_at_its_bound_refuses_and_takes_again_when_there_is_room(
    broker: Connect, queue: str
) -> None:
    async with broker(max_length=3) as one:
        await one.declare_queue(queue)
        accepted = 0
        with pytest.raises(QueueFull, match=queue):  # noqa: PT012 - which of them fails is the broker's
            while accepted < 20:
                await one.publish_job(queue, job())
                accepted += 1
        assert 3 <= accepted < 20
        inbox = Inbox(ack=True)
        await one.consume_jobs(queue, 10, inbox)
        await inbox.has(accepted)
        await until_accepted(one, queue)
        await inbox.has(accepted + 1)


async def until_accepted(handle: Broker, queue: str) -> None:
    for _ in range(200):
        with contextlib.suppress(QueueFull):
            return await handle.publish_job(queue, job())
        await asyncio.sleep(0.01)
    raise AssertionError("the queue stayed full")


@async_test
async def test_replies_reach_the_right_client_only(broker: Connect) -> None:
    async with broker() as node, broker() as one, broker() as two:
        first: list[Message] = []
        second: list[Message] = []
        address_one, _ = await one.open_replies(f"one-{next(_names)}", first.append)
        address_two, _ = await two.open_replies(f"two-{next(_names)}", second.append)
        assert address_one != address_two
        for number in range(20):
            sent = Message(b"%d" % number, "outcome", correlation_id=f"job-{number}")
            assert await node.publish_reply(address_two if number % 2 else address_one, sent)
        await until(lambda: len(first) == 10 and len(second) == 10, "20 replies")
        assert [message.body for message in first] == [b"%d" % n for n in range(0, 20, 2)]
        assert [message.body for message in second] == [b"%d" % n for n in range(1, 20, 2)]
        assert first[0].type == "outcome"
        assert first[0].correlation_id == "job-0"


@async_test
async def test_a_reply_to_an_address_that_is_gone_says_so(broker: Connect) -> None:
    async with broker() as node:
        client = broker()
        await client.start()
        address, subscription = await client.open_replies(f"gone-{next(_names)}", print)
        assert await node.publish_reply(address, Message(b"", "outcome"))
        await client.stop()
        await subscription.close()
        assert not await node.publish_reply(address, Message(b"", "outcome"))
        assert not await node.publish_reply("guest.never", Message(b"", "outcome"))


@async_test
async def test_control_messages_reach_everyone_who_listens(broker: Connect) -> None:
    async with broker() as one, broker() as two, broker() as sender:
        await sender.publish_control(Message(b"too early", "control"))
        heard: list[tuple[int, bytes]] = []
        await one.consume_control(lambda message: heard.append((1, message.body)))
        subscription = await two.consume_control(lambda message: heard.append((2, message.body)))
        await sender.publish_control(Message(b"cancel", "control", headers={"job": "id"}))
        await until(lambda: len(heard) == 2, "both to hear")
        assert sorted(heard) == [(1, b"cancel"), (2, b"cancel")]
        await subscription.close()
        await sender.publish_control(Message(b"more", "control"))
        await until(lambda: len(heard) == 3, "the other to hear")
        assert heard[2] == (1, b"more")


@async_test
async def test_only_the_first_settlement_counts(broker: Connect, queue: str) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        for body in (b"a", b"b"):
            await one.publish_job(queue, job(body))
        inbox = Inbox()
        subscription = await one.consume_jobs(queue, 5, inbox)
        await inbox.has(2)
        for delivery in inbox:
            delivery.ack()
            delivery.ack()
            delivery.reject()
            delivery.give_back()
        await subscription.close()
        assert await is_empty(one, queue)


@async_test
async def test_settling_after_stop_does_nothing_and_stop_gives_back(
    broker: Connect, queue: str
) -> None:
    first = broker()
    await first.start()
    await first.declare_queue(queue)
    for body in (b"a", b"b", b"c"):
        await first.publish_job(queue, job(body))
    inbox = Inbox()
    await first.consume_jobs(queue, 5, inbox)
    await inbox.has(3)
    inbox[1].ack()
    await first.stop()
    for delivery in inbox:
        delivery.ack()
        delivery.reject()
    async with broker() as second:
        rest = Inbox(ack=True)
        await second.consume_jobs(queue, 5, rest)
        await rest.has(2)
        assert sorted(rest.bodies) == [b"a", b"c"]
        assert all(delivery.redelivered for delivery in rest)


@async_test
async def test_acks_made_just_before_stop_are_not_lost(broker: Connect, queue: str) -> None:
    first = broker()
    await first.start()
    await first.declare_queue(queue)
    await asyncio.gather(*(first.publish_job(queue, job()) for _ in range(100)))
    inbox = Inbox()
    await first.consume_jobs(queue, 100, inbox)
    await inbox.has(100)
    for delivery in inbox:
        delivery.ack()
    await first.stop()
    async with broker() as second:
        assert await is_empty(second, queue)


@async_test
async def test_after_close_nothing_more_comes_and_what_came_can_be_settled(
    broker: Connect, queue: str
) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        for number in range(5):
            await one.publish_job(queue, job(b"%d" % number))
        inbox = Inbox()
        subscription = await one.consume_jobs(queue, 2, inbox)
        await inbox.has(2)
        await subscription.close()
        await subscription.close()
        inbox[0].ack()
        inbox[1].give_back()
        rest = Inbox(ack=True)
        await one.consume_jobs(queue, 2, rest)
        await rest.has(4)
        assert len(inbox) == 2
        assert sorted(rest.bodies) == [b"1", b"2", b"3", b"4"]


@async_test
async def test_a_callback_that_raises_does_not_stop_consumption(
    broker: Connect, queue: str
) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        calls: list[bytes] = []

        def fail_once(delivery: Delivery) -> None:
            calls.append(delivery.message.body)
            if len(calls) == 1:
                raise RuntimeError("a mistake of ours")
            delivery.ack()

        await one.consume_jobs(queue, 1, fail_once)
        await one.publish_job(queue, job(b"a"))
        await one.publish_job(queue, job(b"b"))
        await until(lambda: len(calls) == 3, "a redelivery and the next")
        assert sorted(calls) == [b"a", b"a", b"b"]


@async_test
async def test_cancelled_callers_leak_nothing(broker: Connect, queue: str) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        tasks = [asyncio.create_task(one.publish_job(queue, job())) for _ in range(300)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result for result in results[1::2] if result is not None] == []
        await asyncio.gather(*(one.publish_job(queue, job()) for _ in range(50)))
        publisher = getattr(one, "_publisher", None)
        if publisher is not None:
            await until(lambda: not publisher._pending, "late confirms")
            assert not publisher._outbox
            assert not publisher._by_id


@async_test
async def test_thousands_of_publishes_at_once_are_all_confirmed(
    broker: Connect, queue: str
) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        bodies = [b"%d" % number for number in range(5000)]
        await asyncio.gather(*(one.publish_job(queue, job(body)) for body in bodies))
        inbox = Inbox(ack=True)
        await one.consume_jobs(queue, 200, inbox)
        await inbox.has(5000, timeout=60)
        assert inbox.bodies == bodies


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 131_064, 131_065, 1024 * 1024, 8 * 1024 * 1024])
@async_test
async def test_bodies_of_every_size_arrive_whole(broker: Connect, queue: str, size: int) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        body = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
        inbox = Inbox(ack=True)
        await one.consume_jobs(queue, 2, inbox)
        await asyncio.gather(one.publish_job(queue, job(body)), one.publish_job(queue, job(b"n")))
        await inbox.has(2, timeout=60)
        assert inbox[0].message.body == body
        assert inbox[1].message.body == b"n"


@async_test
async def test_a_body_over_the_limit_is_refused_before_it_is_sent(
    broker: Connect, queue: str
) -> None:
    async with broker(max_message_bytes=1000) as one:
        await one.declare_queue(queue)
        await one.publish_job(queue, job(b"x" * 1000))
        with pytest.raises(PayloadTooLarge, match="1001"):
            await one.publish_job(queue, job(b"x" * 1001))


@async_test
async def test_headers_keep_type_and_value(broker: Connect, queue: str) -> None:
    headers = {
        "text": "plain",
        "empty": "",
        "unicode": "Grüße, 世界 \N{TEST TUBE}",
        "float": 0.1,
        "tiny": 1e-300,
        "zero": 0,
        "negative": -5,
        "large": 2**62,
        "millis": 1_790_000_000_000,
        "yes": True,
        "no": False,
        "raw": b"\x00\xff",
        "schlüssel": "key",
    }
    async with broker() as one:
        await one.declare_queue(queue)
        await one.publish_job(queue, job(headers=headers))
        inbox = Inbox(ack=True)
        await one.consume_jobs(queue, 1, inbox)
        await inbox.has(1)
        got = inbox[0].message.headers
        assert got == headers
        assert {key: type(value) for key, value in got.items()} == {
            key: type(value) for key, value in headers.items()
        }


@async_test
async def test_a_header_that_cannot_be_carried_is_named(broker: Connect, queue: str) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        with pytest.raises(InvalidArguments, match="when"):
            await one.publish_job(queue, job(headers={"when": object()}))
        await one.publish_job(queue, job())


@pytest.mark.parametrize("name", ["", "a b", "*", "#", "a.#", ".a", "a.", "ä", "a/b", "x" * 201])
@async_test
async def test_names_that_no_broker_can_carry_are_refused(broker: Connect, name: str) -> None:
    async with broker() as one:
        with pytest.raises(InvalidArguments, match="queue"):
            await one.declare_queue(name)
        with pytest.raises(InvalidArguments, match="queue"):
            await one.publish_job(name, job())
        with pytest.raises(InvalidArguments, match="queue"):
            await one.consume_jobs(name, 1, Inbox())


@pytest.mark.parametrize("name", ["a", "default", "gpu-2", "team.reports_v1", "x" * 200])
@async_test
async def test_names_that_are_allowed_work(broker: Connect, name: str) -> None:
    async with broker() as one:
        await one.declare_queue(name)
        await one.publish_job(name, job(b"last"))
        inbox = Inbox(ack=True)
        await one.consume_jobs(name, 10, inbox)
        await until(lambda: b"last" in inbox.bodies, "the job")


@async_test
async def test_a_client_name_with_dots_or_stars_is_refused(broker: Connect) -> None:
    async with broker() as one:
        for name in ("", "a.b", "*", "#", "a b", "x" * 101):
            with pytest.raises(InvalidArguments, match="client"):
                await one.open_replies(name, print)


@async_test
async def test_prefetch_must_be_positive(broker: Connect, queue: str) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        with pytest.raises(ConfigurationError, match="prefetch"):
            await one.consume_jobs(queue, 0, Inbox())


@async_test
async def test_before_start_and_after_stop_the_broker_is_unavailable(
    broker: Connect, queue: str
) -> None:
    one = broker()
    for _ in range(2):
        assert not one.connected
        with pytest.raises(BrokerUnavailable):
            await one.publish_job(queue, job())
        with pytest.raises(BrokerUnavailable):
            await one.declare_queue(queue)
        with pytest.raises(BrokerUnavailable):
            await one.consume_jobs(queue, 1, Inbox())
        with pytest.raises(BrokerUnavailable):
            await one.open_replies("client", print)
        await one.stop()
        await one.stop()
    with pytest.raises(BrokerUnavailable):
        await one.start()


@async_test
async def test_connected_says_so_from_start_to_stop(broker: Connect) -> None:
    one = broker()
    async with one:
        assert one.connected
    assert not one.connected


@async_test
async def test_two_consumers_share_a_queue(broker: Connect, queue: str) -> None:
    async with broker() as one, broker() as two:
        await one.declare_queue(queue)
        first, second = Inbox(), Inbox()
        await one.consume_jobs(queue, 1, first)
        await two.consume_jobs(queue, 1, second)
        await one.publish_job(queue, job(b"a"))
        await one.publish_job(queue, job(b"b"))
        await first.has(1)
        await second.has(1)
        assert sorted(first.bodies + second.bodies) == [b"a", b"b"]


@async_test
async def test_a_deadline_that_has_passed_fails_or_succeeds_at_once(
    broker: Connect, queue: str
) -> None:
    async with broker() as one:
        await one.declare_queue(queue)
        begun = time.monotonic()
        with contextlib.suppress(BrokerUnavailable):
            await one.publish_job(queue, job(), deadline=begun - 1)
        assert time.monotonic() - begun < 5
        await one.publish_job(queue, job(), deadline=time.monotonic() + 20)
