"""A channel whose messages and confirms are handled on the spot, without a task for each."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiormq.abc import ChannelFrame, FrameType
from aiormq.channel import Channel
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from fumehood.broker.rabbitmq.errors import edge

if TYPE_CHECKING:
    from fumehood.broker.rabbitmq.connection import Wire

log = logging.getLogger("fumehood.broker")

Content = spec.Basic.Deliver | spec.Basic.Return


class LaneUser:
    """What a lane reports to. Every call must return at once."""

    def on_content(self, method: Content, header: ContentHeader, body: bytes) -> None:
        """A delivery or a returned message arrived."""

    def on_confirm(self, tag: int, multiple: bool, positive: bool) -> None:
        """The broker confirmed, or refused, what was published under these tags."""


class _Tap(asyncio.Queue[Any]):
    """Stands where aiormq queues a channel's frames, and takes the frequent ones out."""

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self._lane = lane

    async def put(self, item: tuple[int, FrameType]) -> None:
        try:
            taken = self._lane.take(item[1])
        except Exception:
            # The connection's reader calls this: an error here must not end all other channels.
            log.exception("frame handler failed", extra={"channel": self._lane.number})
            return
        if not taken:
            self.put_nowait(item)


class Lane(Channel):
    """One channel for one purpose: one consumer, the publisher, or a few declarations.

    aiormq does the handshakes; contents and confirms bypass its queue, its task per message and
    its futures.
    """

    def __init__(self, wire: Wire, number: int, user: LaneUser, *, confirms: bool) -> None:
        super().__init__(wire, number, publisher_confirms=confirms)
        self.frames = _Tap(self)
        self.alive = True
        self.ended: asyncio.Future[str] = self.loop.create_future()
        self._user = user
        self._method: Content | None = None
        self._header = ContentHeader()
        self._chunks: list[bytes] = []
        self._missing = 0
        self.closing.add_done_callback(self._on_closed)

    def take(self, frame: FrameType) -> bool:
        """Handle a frame that is ours; False leaves it to aiormq."""
        match frame:
            case ContentBody():
                self._on_body(frame.value)
            case ContentHeader():
                self._header, self._missing = frame, frame.body_size
                if not frame.body_size:
                    self._complete(b"")
            case spec.Basic.Deliver() | spec.Basic.Return():
                self._method = frame
            case spec.Basic.Ack():
                self._user.on_confirm(frame.delivery_tag or 0, bool(frame.multiple), True)
            case spec.Basic.Nack():
                self._user.on_confirm(frame.delivery_tag or 0, bool(frame.multiple), False)
            case spec.Channel.Close():
                self._end(frame.reply_text)
                return False
            case spec.Basic.Cancel():
                self._end("the broker cancelled the consumer")
                return False
            case _:
                return False
        return True

    def send(self, payload: bytes, drained: asyncio.Future[None] | None = None) -> None:
        """Queue ready-made frames for the socket."""
        self.write_queue.put_nowait(ChannelFrame(payload, False, drained))

    async def consume(
        self, queue: str, *, tag: str, no_ack: bool, arguments: dict[str, Any]
    ) -> None:
        """basic.consume; deliveries go to ``on_content``."""
        # aiormq keeps the callback only to know the tag: its deliveries never reach it.
        await self.basic_consume(
            queue, _never, no_ack=no_ack, consumer_tag=tag, arguments=arguments
        )

    async def shut(self, timeout: float) -> None:
        """Close and wait for the broker's answer: everything sent before has been processed."""
        self.alive = False
        try:
            async with asyncio.timeout(timeout):
                with edge("close a channel"):
                    await self.close()
        except Exception as exc:
            log.debug("channel not closed in order", extra={"cause": repr(exc)})

    def _on_body(self, chunk: bytes) -> None:
        self._missing -= len(chunk)
        if self._missing > 0:
            self._chunks.append(chunk)
        elif self._chunks:
            chunks, self._chunks = self._chunks, []
            self._complete(b"".join((*chunks, chunk)))
        else:
            self._complete(chunk)

    def _complete(self, body: bytes) -> None:
        method, self._method = self._method, None
        if method is not None:
            self._user.on_content(method, self._header, body)

    def _on_closed(self, closing: asyncio.Future[None]) -> None:
        exc = None if closing.cancelled() else closing.exception()
        self._end(str(exc or "closed"))

    def _end(self, why: str | None) -> None:
        self.alive = False
        if not self.ended.done():
            self.ended.set_result(why or "closed by the broker")


async def _never(message: object) -> None:
    raise AssertionError("deliveries do not pass through aiormq")
