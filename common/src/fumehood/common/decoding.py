"""Bytes as values: what ``codec.py`` wrote, read with suspicion (``docs/protocol.md``).

Decoding builds plain values only. What only some values need (uuid, zoneinfo, decimal, pathlib) is
imported when such a value is read.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta, timezone, tzinfo

import msgpack

from fumehood.common.errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

# Extension type numbers are the wire format: add, never renumber.
EXT_TUPLE, EXT_SET, EXT_FROZENSET = 1, 2, 3
EXT_DATETIME, EXT_DATE, EXT_TIME, EXT_TIMEDELTA = 4, 5, 6, 7
EXT_UUID, EXT_DECIMAL, EXT_COMPLEX, EXT_PATH, EXT_BIGINT = 8, 9, 10, 11, 12

# Tuples and sets nest as extensions inside extensions, and each level costs a C stack frame of
# the decoder: an unbounded depth would let a message crash its reader.
MAX_EXT_DEPTH = 32

# An array may declare more items than it has, and the decoder allocates for them before it looks.
# Nested, that costs far more than the message is long; below this size it is not worth a check.
SKIM_ABOVE = 4096

# Python's hashes of numbers and tuples are no secret: a message can be made of keys that collide.
_MAX_COLLISIONS = 1000


def decode(data: bytes | memoryview) -> Any:
    """Decode what ``encode`` made. Raises ``DecodeError`` for anything else."""
    try:
        return _unpack(data, 0)
    except DecodeError:
        raise
    except Exception as cause:  # noqa: BLE001 - msgpack and the constructors below raise many kinds
        why = (str(cause) or type(cause).__name__)[:200]
        raise DecodeError(f"not a value this codec can read: {why}") from None


def _unpack(data: bytes | memoryview, depth: int) -> Any:
    if depth > MAX_EXT_DEPTH:
        raise DecodeError(f"extensions nest deeper than {MAX_EXT_DEPTH}")
    if len(data) > SKIM_ABOVE:
        skim = msgpack.Unpacker(max_buffer_size=len(data))
        skim.feed(data)
        skim.skip()  # builds nothing, and fails where items are missing

    hooks: dict[str, Any] = READING
    if depth:
        hooks = {**READING, "ext_hook": _reader_at(depth)}
    return msgpack.unpackb(data, **hooks)


def _reader_at(depth: int) -> Callable[[int, bytes], Any]:
    return lambda code, data: _read_ext(code, data, depth)


def _read_ext(code: int, payload: bytes, depth: int = 0) -> Any:
    reader = _READERS.get(code)
    if reader is None:
        raise DecodeError(f"unknown extension type {code}")
    return reader(payload, depth + 1)


def _read_map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    if len(pairs) > _MAX_COLLISIONS:
        _check_hashes(key for key, _ in pairs)
    made = dict(pairs)
    if len(made) != len(pairs):
        raise DecodeError("a map has one key twice")
    return made


#: How ``msgpack.unpackb`` is called for a value of at most ``SKIM_ABOVE`` bytes.
READING: dict[str, Any] = {
    "ext_hook": _read_ext,
    "object_pairs_hook": _read_map,
    "strict_map_key": False,
    "timestamp": 3,
}


def _read_items(data: bytes, depth: int) -> list[Any]:
    items: list[Any] = _unpack(data, depth)
    if type(items) is not list:
        raise DecodeError("an extension that holds items must hold an array")
    return items


def _read_set(data: bytes, depth: int) -> set[Any]:
    items = _read_items(data, depth)
    if len(items) > _MAX_COLLISIONS:
        _check_hashes(items)
    made = set(items)
    if len(made) != len(items):
        raise DecodeError("a set has one element twice")
    return made


def _check_hashes(keys: Iterable[Any]) -> None:
    hashes = [hash(key) for key in keys]
    if len(hashes) - len(set(hashes)) > _MAX_COLLISIONS:
        raise DecodeError("too many keys of one hash")


def _tz(zone: Any) -> tzinfo | None:
    if zone is None:
        return None
    if type(zone) is int:
        return timezone(timedelta(microseconds=zone))
    from zoneinfo import ZoneInfo

    return ZoneInfo(zone)


def _read_datetime(data: bytes, depth: int) -> datetime:
    text, zone, fold = _read_items(data, depth)
    moment = datetime.fromisoformat(text)
    _check_naive(moment)
    return moment.replace(tzinfo=_tz(zone), fold=fold)


def _read_time(data: bytes, depth: int) -> time:
    text, zone, fold = _read_items(data, depth)
    moment = time.fromisoformat(text)
    _check_naive(moment)
    return moment.replace(tzinfo=_tz(zone), fold=fold)


def _check_naive(moment: datetime | time) -> None:
    if moment.tzinfo is not None:
        raise DecodeError("a time's zone stands beside its text, not in it")


def _read_timedelta(data: bytes, depth: int) -> timedelta:
    days, seconds, micros = _read_items(data, depth)
    return timedelta(days, seconds, micros)


def _read_complex(data: bytes, depth: int) -> complex:
    real, imag = _read_items(data, depth)
    return complex(float(real), float(imag))


def _read_uuid(data: bytes, _: int) -> Any:
    from uuid import UUID

    return UUID(bytes=data)


def _read_decimal(data: bytes, _: int) -> Any:
    from decimal import Decimal

    return Decimal(data.decode())


def _read_path(data: bytes, _: int) -> Any:
    from pathlib import Path

    return Path(data.decode())


_READERS: dict[int, Callable[[bytes, int], Any]] = {
    EXT_TUPLE: lambda data, depth: tuple(_read_items(data, depth)),
    EXT_SET: _read_set,
    EXT_FROZENSET: lambda data, depth: frozenset(_read_set(data, depth)),
    EXT_DATETIME: _read_datetime,
    EXT_DATE: lambda data, _: date.fromisoformat(data.decode()),
    EXT_TIME: _read_time,
    EXT_TIMEDELTA: _read_timedelta,
    EXT_UUID: _read_uuid,
    EXT_DECIMAL: _read_decimal,
    EXT_COMPLEX: _read_complex,
    EXT_PATH: _read_path,
    EXT_BIGINT: lambda data, _: int(data, 16),
}
