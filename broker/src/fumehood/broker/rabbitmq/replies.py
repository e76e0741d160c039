"""Private queues: outcomes for one client, control messages for one node.

Both live and die with their connection, so nothing is lost by not settling their messages.
"""

from __future__ import annotations

import logging
from secrets import token_hex

from fumehood.broker.interface import OnMessage
from fumehood.broker.rabbitmq.connection import Supervisor, Wire
from fumehood.broker.rabbitmq.consumer import StandingConsumer
from fumehood.broker.rabbitmq.lane import Lane
from fumehood.broker.rabbitmq.reader import LaneUser
from fumehood.broker.rabbitmq.topology import (
    CONTROL,
    REPLIES,
    control_queue,
    declare_exchanges,
    declare_private_queue,
    reply_queue,
)
from fumehood.broker.rabbitmq.wire import Content

log = logging.getLogger("fumehood.broker")


class PrivateConsumer(StandingConsumer, LaneUser):
    """Receives from an exclusive queue."""

    def __init__(self, supervisor: Supervisor, name: str, on_message: OnMessage) -> None:
        super().__init__(supervisor, name)
        self._on_message = on_message

    def lane_user(self) -> LaneUser:
        """Nothing is settled here, so there is nothing to keep apart."""
        return self

    def on_delivery(self, tag: int, redelivered: bool, content: Content, body: bytes) -> None:
        """Hand one message over."""
        if self._closed:
            return
        try:
            self._on_message(content.message(body))
        except Exception:
            log.exception("message callback failed", extra={"consumer": self.name})


class ReplyConsumer(PrivateConsumer):
    """The outcomes for one reply address.

    After an outage the broker may hold the old exclusive queue until it notices that its connection
    died: then the declaration fails as locked, and is tried again until it succeeds.
    """

    def __init__(self, supervisor: Supervisor, address: str, on_message: OnMessage) -> None:
        super().__init__(supervisor, f"replies of {address!r}", on_message)
        self._address = address

    async def prepare(self, wire: Wire, lane: Lane) -> str:
        """Declare and bind the reply queue."""
        queue = reply_queue(self._address)
        await declare_exchanges(wire)
        await declare_private_queue(lane, queue, REPLIES, self._address)
        return queue


class ControlConsumer(PrivateConsumer):
    """The control messages for this node; a new queue in each generation."""

    def __init__(self, supervisor: Supervisor, user: str, on_message: OnMessage) -> None:
        super().__init__(supervisor, "control", on_message)
        self._user = user

    async def prepare(self, wire: Wire, lane: Lane) -> str:
        """Declare and bind a control queue of a new name."""
        queue = control_queue(self._user, token_hex(8))
        await declare_exchanges(wire)
        await declare_private_queue(lane, queue, CONTROL, "")
        return queue
