"""What the RabbitMQ adapter costs and carries: ``python benchmarks/broker.py [--uvloop] [N]``.

Starts a private node. Prints messages per second and the client's own CPU time per message, which
is what is left when the broker's share is taken away.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.rabbitmq import PrivateNode

from fumehood.broker import Broker, Delivery, connect
from fumehood.common.message import Message

HEADERS = {"timeout": 5.0, "task": "app.tasks.add", "attempt": 1, "generation": 1}
BODY = b"x" * 200


def job(number: int, reply_to: str = "") -> Message:
    return Message(BODY, "job", f"job-{number:08x}", reply_to, headers=HEADERS)


async def in_flight(count: int, width: int, once: Callable[[int], Awaitable[None]]) -> None:
    """Call ``once`` ``count`` times, ``width`` at a time."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await once(number)

    await asyncio.gather(*(lane() for _ in range(width)))


async def measure(label: str, count: int, run: Awaitable[None]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    await run
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{label:<44} {count / wall:8.0f}/s   client CPU {cpu / count * 1e6:6.1f} us/message")


async def publishes(broker: Broker, count: int, width: int) -> None:
    await broker.declare_queue("publish")

    async def once(number: int) -> None:
        await broker.publish_job("publish", job(number))

    await measure(f"publish, {width} in flight", count, in_flight(count, width, once))


async def consumes(broker: Broker, count: int) -> None:
    """Take what ``publishes`` left."""
    done = asyncio.Event()
    seen = 0

    def take(delivery: Delivery) -> None:
        nonlocal seen
        delivery.ack()
        seen += 1
        if seen == count:
            done.set()

    async def run() -> None:
        await broker.consume_jobs("publish", 100, take)
        await done.wait()

    await measure("consume + ack, prefetch 100", count, run())


class RoundTrips:
    """A producer and a node in one process, over two broker handles, as the real ones would be."""

    def __init__(self, producer: Broker, node: Broker) -> None:
        self.producer = producer
        self.node = node
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.address = ""

    async def open(self) -> None:
        await self.node.declare_queue("round")
        self.address, _ = await self.producer.open_replies("bench", self.on_reply)
        await self.node.consume_jobs("round", 100, self.on_delivery)

    def on_reply(self, message: Message) -> None:
        self.waiting.pop(message.correlation_id).set_result(None)

    def on_delivery(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self.answer(delivery))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, delivery: Delivery) -> None:
        message = delivery.message
        outcome = Message(BODY, "outcome", message.correlation_id)
        await self.node.publish_reply(message.reply_to, outcome)
        delivery.ack()

    async def once(self, number: int) -> None:
        message = job(number, self.address)
        future = asyncio.get_running_loop().create_future()
        self.waiting[message.correlation_id] = future
        await self.producer.publish_job("round", message)
        await future


async def main(url: str, count: int) -> None:
    async with connect(url) as producer, connect(url) as node:
        await publishes(producer, max(count // 10, 100), 1)
        await publishes(producer, count, 50)
        await publishes(producer, count, 500)
        await consumes(node, 2 * count + max(count // 10, 100))
        trips = RoundTrips(producer, node)
        await trips.open()
        for width in (1, 50, 200):
            number = max(count // 10, 100) if width == 1 else count
            label = f"publish + consume + reply + ack, {width} in flight"
            await measure(label, number, in_flight(number, width, trips.once))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=5000)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    factory = None
    if options.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with PrivateNode() as private, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(private.url, options.count))
