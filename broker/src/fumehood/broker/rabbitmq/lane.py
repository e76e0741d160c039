"""A channel for one purpose: one consumer, the publisher, or a few declarations."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel

from fumehood.broker.rabbitmq.errors import TROUBLE, honest_cancellation
from fumehood.broker.rabbitmq.reader import Channelled, LaneUser

if TYPE_CHECKING:
    from fumehood.broker.rabbitmq.connection import Wire

log = logging.getLogger("fumehood.broker")


class Lane(Channelled):
    """An aiormq channel for the rare methods, and our own way for messages and confirms."""

    def __init__(self, wire: Wire, number: int, user: LaneUser, *, confirms: bool) -> None:
        super().__init__(user)
        self.wire = wire
        self.number = number
        self.channel = Channel(wire, number, publisher_confirms=confirms)
        self.alive = True
        self.ended: asyncio.Future[str] = wire.loop.create_future()
        wire.channels[number] = self.channel
        wire.reader.channels[number] = self
        closing: Any = self.channel.closing  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        closing.add_done_callback(self._on_closed)

    @property
    def usable(self) -> bool:
        """Whether what is sent now can reach the broker, as far as is known."""
        return self.alive and self.wire.is_opened

    def send(self, payload: bytes, drained: asyncio.Future[None] | None = None) -> None:
        """Queue ready-made frames for the socket."""
        self.wire.frames.put_nowait(ChannelFrame(payload, False, drained))

    async def consume(
        self, queue: str, *, tag: str, no_ack: bool, arguments: dict[str, Any]
    ) -> None:
        """basic.consume; deliveries go to the user's ``on_delivery``."""
        # aiormq keeps the callback only to know the tag: its deliveries never reach it.
        await self.channel.basic_consume(
            queue, _never, no_ack=no_ack, consumer_tag=tag, arguments=arguments
        )

    async def shut(self, timeout: float) -> None:
        """Close and wait for the broker's answer: everything sent before has been processed."""
        self.alive = False
        try:
            async with asyncio.timeout(timeout):
                with honest_cancellation():
                    await self.channel.close()
        except TROUBLE as exc:
            log.debug("channel not closed in order", extra={"cause": repr(exc)})

    def end(self, why: str) -> None:
        """Nothing more comes; who waits for ``ended`` learns why."""
        self.alive = False
        if not self.ended.done():
            self.ended.set_result(why)

    def _on_closed(self, closing: asyncio.Future[Any]) -> None:
        exc = None if closing.cancelled() else closing.exception()
        if self.wire.reader.channels.get(self.number) is self:
            del self.wire.reader.channels[self.number]
        self.end(str(exc or "closed"))


async def _never(message: object) -> None:
    raise AssertionError("deliveries do not pass through aiormq")
