"""The receiving end of a socket: frames that come once per message are handled on the spot.

aiormq parses each frame in a coroutine, queues it, and starts a task per message: about 100 us for
one delivery. Here a delivery costs a fifth of it. What is rare (handshakes, declarations, closes)
goes on to aiormq as bytes, in the order in which it came.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import SupportsIndex

from fumehood.broker.rabbitmq import wire as bytes_of
from fumehood.broker.rabbitmq.wire import Content

log = logging.getLogger("fumehood.broker")

_FRAME = struct.Struct(">BHI")
_METHOD = struct.Struct(">I")
_CONFIRM = struct.Struct(">QB")
_SMALLEST = 8  # bytes: an empty frame
_METHOD_FRAME, _HEADER_FRAME, _BODY_FRAME, _HEARTBEAT_FRAME = 1, 2, 3, 8
_KINDS = frozenset((_METHOD_FRAME, _HEADER_FRAME, _BODY_FRAME, _HEARTBEAT_FRAME))

_DELIVER, _RETURN = 60 << 16 | 60, 60 << 16 | 50
_ACK, _NACK = 60 << 16 | 80, 60 << 16 | 120
_CHANNEL_CLOSE, _CANCEL = 20 << 16 | 40, 60 << 16 | 30

_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_HEARTBEAT_EVERY = 1.0  # seconds


class LaneUser:
    """What a channel reports to. Every call must return at once."""

    def on_delivery(self, tag: int, redelivered: bool, content: Content, body: bytes) -> None:
        """A message arrived for the channel's consumer."""

    def on_return(self, content: Content) -> None:
        """A mandatory message found no queue; its confirm follows."""

    def on_confirm(self, tag: int, multiple: bool, positive: bool) -> None:
        """The broker confirmed, or refused, what was published under these tags."""


class Channelled(ABC):
    """One channel's place in the stream: puts contents together."""

    def __init__(self, user: LaneUser) -> None:
        self._user = user
        self._delivery: tuple[int, bool] | None = None  # delivery tag, redelivered
        self._content = bytes_of.NO_CONTENT
        self._missing = 0  # bytes of body still to come
        self._chunks: list[bytes] = []

    @abstractmethod
    def end(self, why: str) -> None:
        """The broker ends the channel or its consumer."""

    def take_method(self, data: bytes, start: int) -> bool:
        """Handle a method frame; False if it is a rare one, for aiormq."""
        method = _METHOD.unpack_from(data, start)[0]
        if method == _DELIVER:
            after_consumer_tag = start + 5 + data[start + 4]
            tag, redelivered = _CONFIRM.unpack_from(data, after_consumer_tag)
            self._delivery = tag, redelivered != 0
        elif method in (_ACK, _NACK):
            tag, bits = _CONFIRM.unpack_from(data, start + 4)
            self._user.on_confirm(tag, bits & 1 == 1, method == _ACK)
        elif method == _RETURN:
            self._delivery = None
        else:
            self._notice(method, data, start)
            return False
        return True

    def _notice(self, method: int, data: bytes, start: int) -> None:
        if method == _CHANNEL_CLOSE:
            text = data[start + 7 : start + 7 + data[start + 6]]
            self.end(text.decode(errors="replace"))
        elif method == _CANCEL:
            self.end("the broker cancelled the consumer")

    def take_header(self, data: bytes) -> None:
        """Begin a content."""
        self._content = bytes_of.parse_content(data)
        self._missing = self._content.size
        self._chunks = []
        if not self._missing:
            self._complete(b"")

    def take_body(self, chunk: bytes) -> None:
        """Add to the content; hand it over when it is whole."""
        self._missing -= len(chunk)
        if self._missing > 0:
            self._chunks.append(chunk)
        elif self._chunks:
            chunks, self._chunks = self._chunks, []
            self._complete(b"".join((*chunks, chunk)))
        else:
            self._complete(chunk)

    def _complete(self, body: bytes) -> None:
        if self._delivery is None:
            self._user.on_return(self._content)
        else:
            tag, redelivered = self._delivery
            self._user.on_delivery(tag, redelivered, self._content, body)


class FrameReader(asyncio.StreamReader):
    """A stream reader that keeps the frequent frames of our channels to itself."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self.channels: dict[int, Channelled] = {}
        self._rest = b""  # an incomplete frame
        self._clock = loop.time
        self._last_beat = 0.0

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """Called by the transport with whatever arrived."""
        arrived = data if isinstance(data, bytes) else bytes(data)
        self._pass_on(self._sort(self._rest + arrived if self._rest else arrived))

    def _sort(self, data: bytes) -> list[bytes]:
        start, end = 0, len(data)
        others: list[bytes] = []
        while end - start >= _SMALLEST:
            kind, channel, size = _FRAME.unpack_from(data, start)
            after = start + size + _SMALLEST
            if kind not in _KINDS:  # not AMQP 0-9-1: aiormq says what it thinks of it
                others.append(data[start:])
                start = end
                break
            if after > end:
                break
            if not self._take(kind, channel, data, start + 7, after - 1):
                others.append(data[start:after])
            start = after
        self._rest = data[start:]
        return others

    def _take(self, kind: int, number: int, data: bytes, start: int, end: int) -> bool:
        channel = self.channels.get(number)
        if channel is None or kind == _HEARTBEAT_FRAME:
            return False
        try:
            if kind == _METHOD_FRAME:
                return channel.take_method(data, start)
            if kind == _HEADER_FRAME:
                channel.take_header(data[start:end])
            else:
                channel.take_body(data[start:end])
        except Exception:
            # Whatever went wrong with one message must not end all channels of the connection.
            log.exception("frame handler failed", extra={"channel": number})
        return True

    def _pass_on(self, others: list[bytes]) -> None:
        now = self._clock()
        if others:
            self._last_beat = now
            super().feed_data(b"".join(others))
        elif now - self._last_beat > _HEARTBEAT_EVERY:
            # The broker sends no heartbeat while it sends messages, and aiormq, which does not see
            # those, would take the connection for dead.
            self._last_beat = now
            super().feed_data(_HEARTBEAT)
