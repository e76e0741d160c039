"""RabbitMQ behind the broker interface: the parts, tied together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from fumehood.broker.interface import Broker, OnDelivery, OnMessage, Subscription
from fumehood.broker.names import check_client_name, check_queue_name
from fumehood.broker.options import BrokerOptions
from fumehood.broker.rabbitmq.address import Address
from fumehood.broker.rabbitmq.connection import Supervisor
from fumehood.broker.rabbitmq.consumer import JobConsumer, StandingConsumer
from fumehood.broker.rabbitmq.publisher import Publisher, Verdict
from fumehood.broker.rabbitmq.replies import ControlConsumer, ReplyConsumer
from fumehood.broker.rabbitmq.topology import CONTROL, JOBS, REPLIES, declare_job_queue
from fumehood.common.errors import (
    BrokerUnavailable,
    ConfigurationError,
    QueueFull,
    UnknownQueue,
)
from fumehood.common.message import Message


class RabbitBroker(Broker):
    """A RabbitMQ cluster, over one connection to publish and one to consume.

    Two, because an alarm makes the broker stop reading from a connection that publishes, and acks
    have to get through then.
    """

    def __init__(self, urls: Sequence[str], options: BrokerOptions) -> None:
        self._addresses = [Address.parse(url) for url in urls]
        if len({address.user for address in self._addresses}) > 1:
            raise ConfigurationError("the URLs of one broker must name the same user")
        self._options = options
        self._sending = Supervisor("publish", self._addresses, options)
        self._receiving = Supervisor("consume", self._addresses, options)
        self._publisher = Publisher(self._sending)
        self._consumers: list[StandingConsumer] = []
        self._declared: set[str] = set()
        self._state = "new"

    def __repr__(self) -> str:
        hosts = ", ".join(map(str, self._addresses))
        return f"<RabbitBroker {hosts} {'connected' if self.connected else self._state}>"

    @property
    def connected(self) -> bool:
        """Whether jobs can be sent and received now; False during an alarm of the broker."""
        wire = self._receiving.wire
        return self._publisher.ready and wire is not None and wire.is_opened

    async def start(self) -> None:
        """Open both connections. Raises ``BrokerUnavailable`` within ``connect_timeout``."""
        if self._state != "new":
            raise BrokerUnavailable(f"this broker handle is {self._state}: make a new one")
        self._state = "starting"
        try:
            starts = self._sending.start(), self._receiving.start()
            results = await asyncio.gather(*starts, return_exceptions=True)
            for trouble in filter(None, results):
                raise trouble
            await self._publisher.start()
        except BaseException:
            self._state = "new"
            await self._close_connections()
            raise
        self._state = "started"

    async def stop(self) -> None:
        """Send what was settled, then close. Idempotent."""
        if self._state == "stopped":
            return
        self._state = "stopped"
        consumers, self._consumers = self._consumers, []
        await asyncio.gather(*(consumer.abandon() for consumer in consumers))
        await self._publisher.stop()
        await self._close_connections()

    async def _close_connections(self) -> None:
        await asyncio.gather(self._sending.stop(), self._receiving.stop())

    async def declare_queue(self, queue: str) -> None:
        """Make the job queue and its dead queue exist."""
        check_queue_name(queue)
        self._check_started()
        timeout = self._options.publish_timeout
        try:
            async with asyncio.timeout(timeout):
                await self._declare(queue)
        except TimeoutError:
            raise BrokerUnavailable(
                f"queue {queue!r} could not be declared within {timeout:g} s: "
                f"{self._receiving.last_trouble}"
            ) from None
        self._declared.add(queue)

    async def _declare(self, queue: str) -> None:
        async for attempt in AsyncRetrying(
            wait=wait_random_exponential(0.1, self._options.backoff_max),
            retry=retry_if_exception_type(BrokerUnavailable),
            reraise=True,
        ):
            with attempt:
                wire = await self._receiving.ready()
                await declare_job_queue(wire, queue, self._options)

    async def publish_job(
        self, queue: str, message: Message, *, deadline: float | None = None
    ) -> None:
        """Put a job on a quorum queue; returns when a majority of its members wrote it."""
        check_queue_name(queue)
        verdict = await self._publisher.publish(JOBS, queue, message, deadline=deadline)
        if verdict is Verdict.RETURNED:
            raise UnknownQueue(f"no queue {queue!r} on the broker: start a node that serves it")
        if verdict is Verdict.REFUSED:
            raise QueueFull(f"queue {queue!r} is full: retry later, or add nodes")

    async def consume_jobs(
        self, queue: str, prefetch: int, on_delivery: OnDelivery
    ) -> Subscription:
        """Receive jobs. Raises ``UnknownQueue`` when the queue is not there."""
        check_queue_name(queue)
        if not 1 <= prefetch <= 65_535:
            raise ConfigurationError("prefetch must be from 1 to 65535")
        declared = queue in self._declared
        self._check_started()
        return await self._open(
            JobConsumer(self._receiving, queue, prefetch, on_delivery, declared=declared)
        )

    async def publish_reply(self, reply_to: str, message: Message) -> bool:
        """Send an outcome; False when the reply queue is gone."""
        verdict = await self._publisher.publish(REPLIES, reply_to, message)
        if verdict is Verdict.REFUSED:
            raise BrokerUnavailable(f"the reply queue of {reply_to!r} refused the outcome")
        return verdict is Verdict.CONFIRMED

    async def open_replies(self, client: str, on_message: OnMessage) -> tuple[str, Subscription]:
        """Open the reply address ``<user>.<client>`` on an exclusive queue."""
        address = f"{self._addresses[0].user}.{check_client_name(client)}"
        self._check_started()
        return address, await self._open(ReplyConsumer(self._receiving, address, on_message))

    async def publish_control(self, message: Message) -> None:
        """Send a control message; it does not outlive a restart of the broker."""
        await self._publisher.publish(CONTROL, "", message, mandatory=False, persistent=False)

    async def consume_control(self, on_message: OnMessage) -> Subscription:
        """Receive control messages on a queue of our own."""
        self._check_started()
        user = self._addresses[0].user
        return await self._open(ControlConsumer(self._receiving, user, on_message))

    async def _open(self, consumer: StandingConsumer) -> Subscription:
        self._consumers = [each for each in self._consumers if not each.finished]
        self._consumers.append(consumer)
        try:
            await consumer.open()
        except BaseException:
            if consumer in self._consumers:
                self._consumers.remove(consumer)
            raise
        return consumer

    def _check_started(self) -> None:
        if self._state != "started":
            raise BrokerUnavailable(f"this broker handle is not started ({self._state})")
