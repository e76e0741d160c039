"""Consumers that come back: after an outage, after a cancel by the broker, after a lost queue."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from abc import abstractmethod
from typing import Any

from aiormq import exceptions as vendor
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from fumehood.broker.interface import Delivery, OnDelivery, Subscription
from fumehood.broker.rabbitmq.acks import Acks
from fumehood.broker.rabbitmq.connection import Supervisor, Wire
from fumehood.broker.rabbitmq.errors import edge, explain
from fumehood.broker.rabbitmq.lane import Lane
from fumehood.broker.rabbitmq.reader import LaneUser
from fumehood.broker.rabbitmq.topology import declare_job_queue, job_queue
from fumehood.broker.rabbitmq.wire import Content
from fumehood.common.errors import (
    BrokerUnavailable,
    ConfigurationError,
    FumehoodError,
    UnknownQueue,
)
from fumehood.common.message import Message

log = logging.getLogger("fumehood.broker")

_SETUP_TIMEOUT = 10.0  # seconds for one attempt to set a consumer up
_FIRST_BACKOFF = 0.05  # seconds
_SHORT_LIFE = 1.0  # seconds; a consumer that lived less is not set up again at once
_tags = itertools.count(1)


class StandingConsumer(Subscription):
    """A consumer with a channel of its own, set up again whenever it is lost."""

    prefetch = 0  # messages unsettled at a time; 0: they are not settled at all

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        self.name = name
        self._supervisor = supervisor
        self._options = supervisor.options
        self._lane: Lane | None = None
        self._tag = ""
        self._closed = False
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper: asyncio.Task[None] | None = None

    @abstractmethod
    def lane_user(self) -> LaneUser:
        """What the next channel reports to."""

    @abstractmethod
    async def prepare(self, wire: Wire, lane: Lane) -> str:
        """See to it that the queue exists; return its name."""

    def on_lane(self, lane: Lane) -> None:
        """Called with each new channel before it consumes."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of basic.consume."""
        return {}

    async def open(self) -> None:
        """Set up for the first time. Raises our errors after ``connect_timeout``."""
        self._keeper = asyncio.create_task(self._keep(), name=f"fumehood-consumer-{self.name}")
        timeout = self._options.connect_timeout
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._first)
        except TimeoutError:
            await self.abandon()
            raise BrokerUnavailable(
                f"{self.name} could not be consumed within {timeout:g} s: "
                f"{self._supervisor.last_trouble}"
            ) from None
        except BaseException:
            await self.abandon()
            raise

    async def close(self) -> None:
        """Stop receiving; what was handed over can still be settled."""
        if self._closed:
            return
        self._closed = True
        await self._stop_keeper()
        lane = self._lane
        if lane is None or not lane.alive:
            return
        try:
            async with asyncio.timeout(self._options.stop_timeout):
                with edge("cancel a consumer"):
                    await lane.channel.basic_cancel(self._tag)
        except (FumehoodError, TimeoutError) as exc:
            log.debug("consumer not cancelled in order", extra={"cause": str(exc)})
            return
        await self.after_cancel(lane)

    async def after_cancel(self, lane: Lane) -> None:
        """The broker sends no more: end the channel."""
        await lane.shut(self._options.stop_timeout)

    async def abandon(self) -> None:
        """Stop and close the channel: the broker takes back what is unsettled."""
        self._closed = True
        await self._stop_keeper()
        self.flush()
        lane, self._lane = self._lane, None
        if lane is not None and lane.alive:
            await lane.shut(self._options.stop_timeout)

    def flush(self) -> None:
        """Write the settlements that this tick collected."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to close."""
        return self._closed and (self._lane is None or not self._lane.alive)

    async def _stop_keeper(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                lane = await self._set_up()
            except FumehoodError as exc:
                self._first.set_exception(exc)
                return
            if not self._first.done():
                self._first.set_result(None)
            born = loop.time()
            why = await asyncio.shield(lane.ended)
            extra = {"consumer": self.name, "cause": why}
            log.warning("consumer lost, setting it up again", extra=extra)
            if lane.wire.is_opened:  # cancelled by the broker: this channel is of no use now
                await lane.shut(self._options.stop_timeout)
            if loop.time() - born < _SHORT_LIFE:
                await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - jitter, not a secret

    async def _set_up(self) -> Lane:
        def worth_retrying(exc: BaseException) -> bool:
            # A mistake is told to whoever subscribes; later on only time can mend it.
            fatal = isinstance(exc, ConfigurationError | UnknownQueue)
            return isinstance(exc, FumehoodError) and not (fatal and not self._first.done())

        async for attempt in AsyncRetrying(
            wait=wait_random_exponential(_FIRST_BACKOFF, self._options.backoff_max / 2),
            retry=retry_if_exception(worth_retrying),
            reraise=True,
        ):
            with attempt:
                wire = await self._supervisor.ready()
                return await self._attempt(wire)
        raise AssertionError("retries have no end")

    async def _attempt(self, wire: Wire) -> Lane:
        doing = f"consume {self.name}"
        user = self.lane_user()
        try:
            async with asyncio.timeout(_SETUP_TIMEOUT):
                with edge(doing):
                    self._lane = lane = await wire.open_lane(user)
                    self.on_lane(lane)
                    await self._consume(wire, lane)
                    return lane
        except (FumehoodError, TimeoutError) as exc:
            if self._first.done():
                extra = {"consumer": self.name, "cause": str(exc)}
                log.warning("consumer not set up", extra=extra)
            if self._lane is not None and self._lane.alive and wire.is_opened:
                await self._lane.shut(self._options.stop_timeout)
            if isinstance(exc, TimeoutError):
                raise BrokerUnavailable(f"{doing}: no answer in time") from None
            raise

    async def _consume(self, wire: Wire, lane: Lane) -> None:
        queue = await self.prepare(wire, lane)
        if self.prefetch:
            await lane.channel.basic_qos(prefetch_count=self.prefetch)
        # A fresh tag each time: RabbitMQ 4.3 may still hold the cancelled one.
        self._tag = f"fumehood-{next(_tags)}"
        no_ack = not self.prefetch
        await lane.consume(queue, tag=self._tag, no_ack=no_ack, arguments=self.arguments())


class RabbitDelivery(Delivery):
    """A job from RabbitMQ; valid as long as the channel that brought it."""

    __slots__ = ("_acks", "_tag", "acquired_count", "message", "queue", "redelivered")

    def __init__(
        self, acks: Acks, queue: str, message: Message, tag: int, *, redelivered: bool
    ) -> None:
        self._acks: Acks | None = acks
        self._tag = tag
        self.message = message
        self.queue = queue
        self.redelivered = redelivered
        headers = message.headers
        # RabbitMQ 4.3 counts hand-outs in a header of its own; before, the delivery count did.
        count = headers.get("x-acquired-count", headers.get("x-delivery-count", 0))
        self.acquired_count = count if isinstance(count, int) else 0

    def __repr__(self) -> str:
        return f"<RabbitDelivery {self._tag} of {self.queue!r} {self.message.correlation_id}>"

    def ack(self) -> None:
        """Settle it."""
        acks = self._take()
        if acks is not None:
            acks.ack(self._tag)

    def give_back(self) -> None:
        """basic.nack with requeue."""
        acks = self._take()
        if acks is not None:
            acks.give_back(self._tag)

    def reject(self) -> None:
        """basic.reject with requeue."""
        acks = self._take()
        if acks is not None:
            acks.reject(self._tag)

    def _take(self) -> Acks | None:
        acks, self._acks = self._acks, None
        if acks is None or acks.alive:
            return acks
        log.debug("settlement dropped: its channel is gone", extra={"queue": self.queue})
        return None


class _JobLane(LaneUser):
    """The deliveries of one channel."""

    def __init__(self, consumer: JobConsumer) -> None:
        self.acks = Acks()
        self._consumer = consumer

    def on_delivery(self, tag: int, redelivered: bool, content: Content, body: bytes) -> None:
        """Make a delivery of it and hand it over."""
        self.acks.unsettled += 1
        consumer = self._consumer
        message = content.message(body)
        consumer.hand_over(
            RabbitDelivery(self.acks, consumer.queue, message, tag, redelivered=redelivered)
        )


class JobConsumer(StandingConsumer):
    """Receives the jobs of one queue."""

    def __init__(
        self,
        supervisor: Supervisor,
        queue: str,
        prefetch: int,
        on_delivery: OnDelivery,
        *,
        declared: bool,
    ) -> None:
        super().__init__(supervisor, f"queue {queue!r}")
        self.queue = queue
        self.prefetch = prefetch
        self._on_delivery = on_delivery
        self._declared = declared
        self._user: _JobLane | None = None

    def lane_user(self) -> LaneUser:
        """New settlements for a new channel, which counts its deliveries from 1."""
        self._user = _JobLane(self)
        return self._user

    def on_lane(self, lane: Lane) -> None:
        """Settlements go where the deliveries come from."""
        if self._user is not None:
            self._user.acks.lane = lane

    async def prepare(self, wire: Wire, lane: Lane) -> str:
        """Look whether the queue is there; one that was there once is made again."""
        probe = await wire.open_lane(LaneUser())
        try:
            await probe.channel.queue_declare(job_queue(self.queue), passive=True)
            await probe.channel.close()
        except vendor.ChannelNotFoundEntity as exc:
            if not (self._declared or self._first.done()):
                raise UnknownQueue(f"no queue {self.queue!r}: {explain(exc)}") from None
            await declare_job_queue(wire, self.queue, self._options)
        return job_queue(self.queue)

    def arguments(self) -> dict[str, Any]:
        """The consumer's own timeout wins over the queue's from RabbitMQ 4.3 on."""
        return {"x-consumer-timeout": self._options.consumer_timeout_ms}

    def hand_over(self, delivery: RabbitDelivery) -> None:
        """Give a delivery to the caller, or back to the broker when nobody wants it."""
        if self._closed:
            delivery.give_back()
            return
        try:
            self._on_delivery(delivery)
        except Exception:
            log.exception("delivery callback failed", extra={"queue": self.queue})
            delivery.reject()

    def flush(self) -> None:
        """Write the settlements that this tick collected."""
        if self._user is not None:
            self._user.acks.flush()

    async def after_cancel(self, lane: Lane) -> None:
        """Deliveries handed over stay valid: the channel stays until the last is settled."""
        acks = self._user.acks if self._user is not None else Acks()
        acks.flush()
        if not acks.unsettled:
            await super().after_cancel(lane)
            return
        tasks: set[asyncio.Task[None]] = set()  # a task that nobody holds may vanish
        acks.when_idle = lambda: tasks.add(
            asyncio.create_task(lane.shut(self._options.stop_timeout))
        )
