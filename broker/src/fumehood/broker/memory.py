"""The broker inside one process and one event loop, for tests and for development.

Its semantics are those of the real one: FIFO per queue, prefetch, redelivery with a count, bounds,
returned replies. What it lacks is another process and durability.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from fumehood.broker.interface import Broker, Delivery, OnDelivery, OnMessage, Subscription
from fumehood.broker.names import check_client_name, check_queue_name
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

log = logging.getLogger("fumehood.broker")

_HEADER_TYPES = (str, int, float, bool, bytes)


class _Hub:
    """What all handles of one name share."""

    def __init__(self) -> None:
        self.queues: dict[str, _Queue] = {}
        self.replies: dict[str, _Listener] = {}
        self.controls: set[_Listener] = set()
        self.message_ids = itertools.count(1)


_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Hub]] = WeakKeyDictionary()


class _Queue:
    """One job queue: a heap by arrival, so that what comes back regains its place."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: list[tuple[int, int, Message]] = []  # arrival, times handed out, message
        self.arrivals = itertools.count(1)
        self.consumers: list[_Consumer] = []

    def put(self, message: Message) -> None:
        heapq.heappush(self.ready, (next(self.arrivals), 0, message))
        self.pump()

    def put_back(self, delivery: _MemoryDelivery) -> None:
        entry = (delivery.arrival, delivery.acquired_count + 1, delivery.message)
        heapq.heappush(self.ready, entry)
        self.pump()

    def pump(self) -> None:
        """Hand ready messages to consumers with room, in turn."""
        idle = 0
        while self.ready and idle < len(self.consumers):
            consumer = self.consumers.pop(0)
            self.consumers.append(consumer)
            if not consumer.has_room:
                idle += 1
                continue
            idle = 0
            arrival, count, message = heapq.heappop(self.ready)
            consumer.take(_MemoryDelivery(consumer, arrival, count, message))


class _MemoryDelivery(Delivery):
    __slots__ = ("_consumer", "acquired_count", "arrival", "message", "queue", "redelivered")

    def __init__(self, consumer: _Consumer, arrival: int, count: int, message: Message) -> None:
        self._consumer = consumer
        self.arrival = arrival
        self.message = message
        self.queue = consumer.queue.name
        self.redelivered = count > 0
        self.acquired_count = count

    def ack(self) -> None:
        self._consumer.settle(self, back=False)

    def give_back(self) -> None:
        self._consumer.settle(self, back=True)

    def reject(self) -> None:
        self._consumer.settle(self, back=True)


class _Consumer(Subscription):
    """One subscription to a job queue and what it holds unsettled."""

    def __init__(self, queue: _Queue, prefetch: int, on_delivery: OnDelivery) -> None:
        self.queue = queue
        self._prefetch = prefetch
        self._on_delivery = on_delivery
        self._held: set[_MemoryDelivery] = set()
        self._open = True

    @property
    def has_room(self) -> bool:
        return len(self._held) < self._prefetch

    def take(self, delivery: _MemoryDelivery) -> None:
        self._held.add(delivery)
        asyncio.get_running_loop().call_soon(self._hand_over, delivery)

    def _hand_over(self, delivery: _MemoryDelivery) -> None:
        if delivery not in self._held:
            return
        if not self._open:
            self.settle(delivery, back=True)
            return
        try:
            self._on_delivery(delivery)
        except Exception:
            log.exception("delivery callback failed", extra={"queue": self.queue.name})
            self.settle(delivery, back=True)

    def settle(self, delivery: _MemoryDelivery, *, back: bool) -> None:
        if delivery not in self._held:
            return
        self._held.discard(delivery)
        if back:
            self.queue.put_back(delivery)
        else:
            self.queue.pump()

    async def close(self) -> None:
        self.stop_receiving()

    def stop_receiving(self) -> None:
        self._open = False
        if self in self.queue.consumers:
            self.queue.consumers.remove(self)

    def drop(self) -> None:
        """Stop, and give back all that is held: the loss of a connection."""
        self.stop_receiving()
        held, self._held = sorted(self._held, key=lambda delivery: delivery.arrival), set()
        for delivery in held:
            self.queue.put_back(delivery)


class _Listener(Subscription):
    """A receiver of replies or control messages."""

    def __init__(self, on_message: OnMessage, forget: Callable[[_Listener], object]) -> None:
        self._on_message: OnMessage | None = on_message
        self._forget = forget

    def hand_over(self, message: Message) -> None:
        asyncio.get_running_loop().call_soon(self._deliver, message)

    def _deliver(self, message: Message) -> None:
        if self._on_message is None:
            return
        try:
            self._on_message(message)
        except Exception:
            log.exception("message callback failed", extra={"type": message.type})

    async def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        self._on_message = None
        self._forget(self)


class MemoryBroker(Broker):
    """A handle on the in-process broker ``memory://NAME`` of the running event loop."""

    def __init__(self, name: str, options: BrokerOptions) -> None:
        self._name = name
        self._options = options
        self._hub: _Hub | None = None
        self._stopped = False
        self._subscriptions: list[_Consumer | _Listener] = []

    def __repr__(self) -> str:
        return f"<MemoryBroker memory://{self._name} {'up' if self.connected else 'down'}>"

    @property
    def connected(self) -> bool:
        """Whether this handle is started and not stopped."""
        return self._hub is not None

    async def start(self) -> None:
        """Join the hub of this name, or make it."""
        if self._stopped:
            raise BrokerUnavailable("this broker handle was stopped: make a new one with connect()")
        hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
        self._hub = hubs.setdefault(self._name, _Hub())

    async def stop(self) -> None:
        """Leave the hub; what this handle held unsettled goes back to its queues."""
        self._stopped = True
        self._hub = None
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            if isinstance(subscription, _Consumer):
                subscription.stop_receiving()
        for subscription in subscriptions:
            subscription.drop()

    async def declare_queue(self, queue: str) -> None:
        """Make the job queue exist in the hub."""
        hub = self._joined()
        hub.queues.setdefault(check_queue_name(queue), _Queue(queue))

    async def publish_job(
        self, queue: str, message: Message, *, deadline: float | None = None
    ) -> None:
        """Put a job on the queue; safe at once."""
        target = self._queue(queue)
        bound = self._options.max_length
        if bound is not None and len(target.ready) >= bound:
            raise QueueFull(f"queue {queue!r} is full: {bound} jobs wait in it")
        target.put(self._stamp(message))
        await asyncio.sleep(0)  # as with a real broker, others run before a publish returns

    async def consume_jobs(
        self, queue: str, prefetch: int, on_delivery: OnDelivery
    ) -> Subscription:
        """Receive jobs of the queue. Raises ``UnknownQueue`` when it was not declared."""
        if prefetch < 1:
            raise ConfigurationError("prefetch must be at least 1")
        source = self._queue(queue)
        consumer = _Consumer(source, prefetch, on_delivery)
        self._subscriptions.append(consumer)
        source.consumers.append(consumer)
        source.pump()
        return consumer

    async def publish_reply(self, reply_to: str, message: Message) -> bool:
        """Send an outcome; False when nobody listens at that address."""
        listener = self._joined().replies.get(reply_to)
        stamped = self._stamp(message)
        if listener is not None:
            listener.hand_over(stamped)
        await asyncio.sleep(0)
        return listener is not None

    async def open_replies(self, client: str, on_message: OnMessage) -> tuple[str, Subscription]:
        """Open the reply address ``memory.<client>``."""
        hub = self._joined()
        address = f"memory.{check_client_name(client)}"
        if address in hub.replies:
            raise BrokerUnavailable(f"the reply address {address!r} is held by another client")
        listener = _Listener(on_message, lambda _: hub.replies.pop(address, None))
        hub.replies[address] = listener
        self._subscriptions.append(listener)
        return address, listener

    async def publish_control(self, message: Message) -> None:
        """Send a control message to everyone who listens now."""
        stamped = self._stamp(message)
        for listener in tuple(self._joined().controls):
            listener.hand_over(stamped)
        await asyncio.sleep(0)

    async def consume_control(self, on_message: OnMessage) -> Subscription:
        """Receive control messages from now on."""
        hub = self._joined()
        listener = _Listener(on_message, hub.controls.discard)
        hub.controls.add(listener)
        self._subscriptions.append(listener)
        return listener

    def _joined(self) -> _Hub:
        if self._hub is None:
            why = "was stopped" if self._stopped else "is not started"
            raise BrokerUnavailable(f"the broker memory://{self._name} {why}")
        return self._hub

    def _queue(self, queue: str) -> _Queue:
        found = self._joined().queues.get(check_queue_name(queue))
        if found is None:
            raise UnknownQueue(f"no queue {queue!r} on this broker: start a node that serves it")
        return found

    def _stamp(self, message: Message) -> Message:
        limit = self._options.max_message_bytes
        if len(message.body) > limit:
            raise PayloadTooLarge(f"a body of {len(message.body)} bytes is over {limit}")
        headers: dict[str, Any] = dict(message.headers)
        for key, value in headers.items():
            if not isinstance(value, _HEADER_TYPES):
                raise InvalidArguments(
                    f"{type(value).__name__} cannot be a header", f"headers[{key!r}]"
                )
        message_id = f"memory-{next(self._joined().message_ids)}"
        return replace(message, headers=headers, message_id=message_id)
