"""AMQP frames as bytes, for the few that come or go once per message.

pamqp can do this too. It is done here because it sends a float header in single precision, which
would bend a ``timeout``, and because packing directly costs a third of the time.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from pamqp import decode

from fumehood.common.errors import InvalidArguments
from fumehood.common.message import Message

log = logging.getLogger("fumehood.broker")

FRAME_END = b"\xce"
_FRAME_OVERHEAD = 8  # bytes: type, channel, size and the end mark
_MAX_HEADERS = 120_000  # bytes; all properties have to fit into one frame of 128 KiB

_FRAME = struct.Struct(">BHI")
_CONTENT = struct.Struct(">BHIHHQH")  # frame head, class, weight, body size, property flags
_SETTLE = struct.Struct(">BHIIQBB")

_ACK = 60 << 16 | 80
_REJECT = 60 << 16 | 90
_NACK = 60 << 16 | 120
_PUBLISH = struct.pack(">HHH", 60, 40, 0)
_MANDATORY = 1
_REQUEUE_NACK = 2  # in basic.nack the first bit says "multiple"
_REQUEUE_REJECT = 1

_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 13, 1 << 12
_CORRELATION_ID, _REPLY_TO, _MESSAGE_ID, _TYPE = 1 << 10, 1 << 9, 1 << 7, 1 << 5


def ack(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """basic.ack of one delivery tag, or of all up to it."""
    return _SETTLE.pack(1, channel, 13, _ACK, tag, multiple, 0xCE)


def give_back(channel: int, tag: int) -> bytes:
    """basic.nack with requeue: brokers from 4.3 on do not count it as a failure."""
    return _SETTLE.pack(1, channel, 13, _NACK, tag, _REQUEUE_NACK, 0xCE)


def reject(channel: int, tag: int) -> bytes:
    """basic.reject with requeue: a counted failure on every version."""
    return _SETTLE.pack(1, channel, 13, _REJECT, tag, _REQUEUE_REJECT, 0xCE)


@lru_cache(maxsize=4096)
def publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """The basic.publish frame; the same for every message to one destination."""
    bits = _MANDATORY if mandatory else 0
    body = _PUBLISH + _short(exchange, "exchange") + _short(routing_key, "routing key")
    payload = body + bytes((bits,))
    return _FRAME.pack(1, channel, len(payload)) + payload + FRAME_END


def content(
    channel: int, message: Message, message_id: str, *, persistent: bool, frame_max: int
) -> list[bytes]:
    """The header frame and the body frames.

    Raises ``InvalidArguments`` for what AMQP cannot hold.
    """
    flags, properties = _properties(message, message_id, persistent)
    if len(properties) > _MAX_HEADERS:
        raise InvalidArguments(f"{len(properties)} bytes of headers are over {_MAX_HEADERS}")
    body = message.body
    head = _CONTENT.pack(2, channel, 14 + len(properties), 60, 0, len(body), flags)
    parts = [head, properties, FRAME_END]
    room = frame_max - _FRAME_OVERHEAD
    for start in range(0, len(body), room):
        piece = body if len(body) <= room else body[start : start + room]
        parts += (_FRAME.pack(3, channel, len(piece)), piece, FRAME_END)
    return parts


def _properties(message: Message, message_id: str, persistent: bool) -> tuple[int, bytes]:
    flags = _DELIVERY_MODE | _MESSAGE_ID
    parts: list[bytes] = []
    if message.content_type:
        flags |= _CONTENT_TYPE
        parts.append(_short(message.content_type, "content_type"))
    if message.headers:
        flags |= _HEADERS
        parts.append(_table(message.headers))
    parts.append(b"\x02" if persistent else b"\x01")
    if message.correlation_id:
        flags |= _CORRELATION_ID
        parts.append(_short(message.correlation_id, "correlation_id"))
    if message.reply_to:
        flags |= _REPLY_TO
        parts.append(_short(message.reply_to, "reply_to"))
    parts.append(_short(message_id, "message_id"))
    if message.type:
        flags |= _TYPE
        parts.append(_short(message.type, "type"))
    return flags, b"".join(parts)


def _short(text: str, what: str) -> bytes:
    raw = text.encode()
    if len(raw) > 255:
        raise InvalidArguments(f"{len(raw)} bytes are over AMQP's 255", path=what)
    return bytes((len(raw),)) + raw


@lru_cache(maxsize=512)
def _key(name: str) -> bytes:
    return _short(name, "headers")


def _table(headers: Mapping[str, Any]) -> bytes:
    parts: list[bytes] = []
    for name, value in headers.items():
        parts += (_key(name), _value(name, value))
    table = b"".join(parts)
    return struct.pack(">I", len(table)) + table


def _value(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
        return struct.pack(">cI", b"S", len(raw)) + raw
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise InvalidArguments("an integer of more than 64 bits", f"headers[{name!r}]")
        return struct.pack(">cq", b"l", value)
    if isinstance(value, float):
        return struct.pack(">cd", b"d", value)
    if isinstance(value, bytes):
        return struct.pack(">cI", b"x", len(value)) + value
    raise InvalidArguments(f"{type(value).__name__} cannot be a header", f"headers[{name!r}]")


class Content(NamedTuple):
    """The properties of a received message that we use, and the size of its body in bytes."""

    size: int
    content_type: str
    headers: dict[str, Any]
    correlation_id: str
    reply_to: str
    message_id: str
    type: str

    def message(self, body: bytes) -> Message:
        """The message in our own type."""
        return Message(
            body,
            self.type,
            self.correlation_id,
            self.reply_to,
            self.content_type,
            self.headers,
            self.message_id,
        )


NO_CONTENT = Content(0, "", {}, "", "", "", "")

_SIZE_AND_FLAGS = struct.Struct(">4xQH")
# All properties in the order of their flags, from bit 15 down; their place in ``Content``, or 0.
_SHORT, _TABLE, _OCTET, _LONGLONG = range(4)
_PROPERTIES = (
    (1 << 15, _SHORT, 1),  # content_type
    (1 << 14, _SHORT, 0),  # content_encoding
    (1 << 13, _TABLE, 2),  # headers
    (1 << 12, _OCTET, 0),  # delivery_mode
    (1 << 11, _OCTET, 0),  # priority
    (1 << 10, _SHORT, 3),  # correlation_id
    (1 << 9, _SHORT, 4),  # reply_to
    (1 << 8, _SHORT, 0),  # expiration
    (1 << 7, _SHORT, 5),  # message_id
    (1 << 6, _LONGLONG, 0),  # timestamp
    (1 << 5, _SHORT, 6),  # type
)


def parse_content(data: bytes) -> Content:
    """Read the payload of a header frame. What a stranger wrote wrongly is left out."""
    size, flags = _SIZE_AND_FLAGS.unpack_from(data)
    found: list[Any] = [size, "", {}, "", "", "", ""]
    at = 14
    for flag, kind, place in _PROPERTIES:
        if not flags & flag:
            continue
        if kind == _SHORT:
            end = at + 1 + data[at]
            if place:
                found[place] = data[at + 1 : end].decode(errors="replace")
            at = end
        elif kind == _TABLE:
            end = at + 4 + int.from_bytes(data[at : at + 4])
            found[place] = _parse_table(data[at:end])
            at = end
        else:
            at += 1 if kind == _OCTET else 8
    return Content(*found)


def _parse_table(data: bytes) -> dict[str, Any]:
    try:
        table: dict[str, Any] = decode.field_table(data)[1]
    except (ValueError, OverflowError, OSError) as exc:
        log.warning("unreadable headers", extra={"cause": str(exc)})
        return {}
    for key, value in table.items():
        if type(value) is bytearray:
            table[key] = bytes(value)
    return table
