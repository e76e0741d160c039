"""Values as bytes: msgpack, and extension types for what msgpack lacks (``docs/protocol.md``).

Decoding builds plain values only. Enum members, dataclasses and pydantic models travel as their
plain parts; ``rebuild.py`` makes them anew from a task's own annotations, where the task runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from pathlib import PurePath, PurePosixPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack

from fumehood.common.errors import DecodeError, InvalidArguments

# Extension type numbers are the wire format: add, never renumber.
EXT_TUPLE, EXT_SET, EXT_FROZENSET = 1, 2, 3
EXT_DATETIME, EXT_DATE, EXT_TIME, EXT_TIMEDELTA = 4, 5, 6, 7
EXT_UUID, EXT_DECIMAL, EXT_COMPLEX, EXT_PATH, EXT_BIGINT = 8, 9, 10, 11, 12

# Tuples and sets nest as extensions inside extensions, and each level costs a C stack frame of
# the decoder: an unbounded depth would let a message crash its reader.
MAX_EXT_DEPTH = 32
MAX_DEPTH = 500


class _Unencodable(Exception):
    """Raised inside the packer; ``encode`` then walks the value to find where it lies."""


def encode(value: Any, root: str = "value") -> bytes:
    """Encode ``value``. Raises ``InvalidArguments`` with the path to what cannot be carried.

    ``root`` is the name that the path starts with, such as ``args``.
    """
    try:
        return _pack(value, 0)
    except (_Unencodable, ValueError, OverflowError, TypeError, RecursionError) as cause:
        path, why = _find_fault(value, root)
        raise InvalidArguments(why or str(cause), path) from None


def decode(data: bytes | memoryview) -> Any:
    """Decode what ``encode`` made. Raises ``DecodeError`` for anything else."""
    try:
        return _unpack(data, 0)
    except DecodeError:
        raise
    except Exception as cause:  # msgpack and the constructors below raise many kinds
        raise DecodeError(f"not a value this codec can read: {cause or type(cause).__name__}") from None


def _pack(value: Any, depth: int) -> bytes:
    if depth > MAX_EXT_DEPTH:
        raise _Unencodable(f"tuples and sets nest deeper than {MAX_EXT_DEPTH}")

    def default(obj: Any) -> Any:
        return _to_wire(obj, depth)

    return msgpack.packb(value, default=default, strict_types=True, use_bin_type=True)  # type: ignore[no-any-return]


def _unpack(data: bytes | memoryview, depth: int) -> Any:
    if depth > MAX_EXT_DEPTH:
        raise DecodeError(f"extensions nest deeper than {MAX_EXT_DEPTH}")

    def ext(code: int, payload: bytes) -> Any:
        reader = _READERS.get(code)
        if reader is None:
            raise DecodeError(f"unknown extension type {code}")
        return reader(payload, depth + 1)

    return msgpack.unpackb(data, ext_hook=ext, raw=False, strict_map_key=False, use_list=True)


# --- writing -------------------------------------------------------------------------------


def _to_wire(obj: Any, depth: int) -> Any:
    """What the packer cannot write by itself: an ``ExtType`` or a plainer value."""
    if isinstance(obj, Enum):
        return _plain(obj.value, depth)
    for kind, writer in _WRITERS:
        if isinstance(obj, kind):
            return writer(obj, depth)
    if is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: getattr(obj, f.name) for f in fields(obj)}
    if _is_pydantic(obj):
        return {name: getattr(obj, name) for name in type(obj).model_fields}
    raise _Unencodable(f"a {_name(type(obj))} cannot be carried in a message")


def _plain(value: Any, depth: int) -> Any:
    # The packer asks once per value, so an answer must be something that it can write itself.
    return value if type(value) in _NATIVE else _to_wire(value, depth)


_NATIVE = frozenset((type(None), bool, float, str, bytes, list, dict))


def _is_pydantic(obj: Any) -> bool:
    # Asked by shape: importing pydantic here would cost every sandbox some megabytes.
    return hasattr(type(obj), "model_fields") and hasattr(type(obj), "model_validate")


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _ext_items(code: int) -> Callable[[Any, int], Any]:
    return lambda obj, depth: msgpack.ExtType(code, _pack(list(obj), depth + 1))


def _ext_text(code: int, text: Callable[[Any], str]) -> Callable[[Any, int], Any]:
    return lambda obj, _: msgpack.ExtType(code, text(obj).encode())


def _write_datetime(obj: datetime, depth: int) -> Any:
    parts = [obj.replace(tzinfo=None, fold=0).isoformat(), _zone(obj.tzinfo), obj.fold]
    return msgpack.ExtType(EXT_DATETIME, _pack(parts, depth + 1))


def _write_time(obj: time, depth: int) -> Any:
    parts = [obj.replace(tzinfo=None, fold=0).isoformat(), _zone(obj.tzinfo), obj.fold]
    return msgpack.ExtType(EXT_TIME, _pack(parts, depth + 1))


def _zone(tz: tzinfo | None) -> str | int | None:
    """A zone as its IANA key, a fixed offset as microseconds, none as None."""
    if tz is None:
        return None
    if isinstance(tz, ZoneInfo) and tz.key:
        return tz.key
    if isinstance(tz, timezone):
        return tz.utcoffset(None) // timedelta(microseconds=1)
    raise _Unencodable(f"a {_name(type(tz))} cannot be carried: use zoneinfo.ZoneInfo or datetime.timezone")


def _write_timedelta(obj: timedelta, depth: int) -> Any:
    return msgpack.ExtType(EXT_TIMEDELTA, _pack([obj.days, obj.seconds, obj.microseconds], depth + 1))


def _write_bigint(obj: int, _: int) -> Any:
    plain = int(obj)
    if -(1 << 63) <= plain < (1 << 64):
        return plain  # a subclass of int
    # Hexadecimal, not decimal: CPython limits the digits of decimal conversions.
    return msgpack.ExtType(EXT_BIGINT, b"%x" % plain if plain >= 0 else b"-%x" % -plain)


# The order matters: datetime is a date, and subclasses of plain types travel as their base.
_WRITERS: tuple[tuple[Any, Callable[[Any, int], Any]], ...] = (
    (int, _write_bigint),
    (tuple, _ext_items(EXT_TUPLE)),
    (set, _ext_items(EXT_SET)),
    (frozenset, _ext_items(EXT_FROZENSET)),
    (datetime, _write_datetime),
    (date, _ext_text(EXT_DATE, date.isoformat)),
    (time, _write_time),
    (timedelta, _write_timedelta),
    (UUID, lambda obj, _: msgpack.ExtType(EXT_UUID, obj.bytes)),
    (Decimal, _ext_text(EXT_DECIMAL, str)),
    (complex, lambda obj, depth: msgpack.ExtType(EXT_COMPLEX, _pack([obj.real, obj.imag], depth + 1))),
    (PurePath, _ext_text(EXT_PATH, lambda obj: obj.as_posix())),
    (str, lambda obj, _: str.__str__(obj)),
    (float, lambda obj, _: float(obj)),
    (list, lambda obj, _: list(obj)),
    (Mapping, lambda obj, _: dict(obj)),
    ((bytearray, memoryview, bytes), lambda obj, _: bytes(obj)),
)


# --- reading -------------------------------------------------------------------------------


def _items(data: bytes, depth: int) -> list[Any]:
    items = _unpack(data, depth)
    if not isinstance(items, list):
        raise DecodeError("an extension that holds items must hold an array")
    return items


def _tz(zone: Any) -> tzinfo | None:
    if zone is None:
        return None
    if isinstance(zone, str):
        return ZoneInfo(zone)
    return timezone.utc if zone == 0 else timezone(timedelta(microseconds=zone))


def _read_datetime(data: bytes, depth: int) -> datetime:
    text, zone, fold = _items(data, depth)
    return datetime.fromisoformat(text).replace(tzinfo=_tz(zone), fold=fold)


def _read_time(data: bytes, depth: int) -> time:
    text, zone, fold = _items(data, depth)
    return time.fromisoformat(text).replace(tzinfo=_tz(zone), fold=fold)


def _read_timedelta(data: bytes, depth: int) -> timedelta:
    days, seconds, micros = _items(data, depth)
    return timedelta(days, seconds, micros)


def _read_path(data: bytes, _: int) -> PurePath:
    from pathlib import Path

    return Path(PurePosixPath(data.decode()))


_READERS: dict[int, Callable[[bytes, int], Any]] = {
    EXT_TUPLE: lambda data, depth: tuple(_items(data, depth)),
    EXT_SET: lambda data, depth: set(_items(data, depth)),
    EXT_FROZENSET: lambda data, depth: frozenset(_items(data, depth)),
    EXT_DATETIME: _read_datetime,
    EXT_DATE: lambda data, _: date.fromisoformat(data.decode()),
    EXT_TIME: _read_time,
    EXT_TIMEDELTA: _read_timedelta,
    EXT_UUID: lambda data, _: UUID(bytes=bytes(data)),
    EXT_DECIMAL: lambda data, _: Decimal(data.decode()),
    EXT_COMPLEX: lambda data, depth: complex(*_items(data, depth)),
    EXT_PATH: _read_path,
    EXT_BIGINT: lambda data, _: int(data, 16),
}


# --- naming the fault ----------------------------------------------------------------------


def _find_fault(value: Any, path: str, above: tuple[int, ...] = ()) -> tuple[str, str]:
    """The path to the first part of ``value`` that cannot be carried, and why; ("", "") if none.

    Runs only after an encode failed, so that the common case pays nothing for it.
    """
    if id(value) in above:
        return path, "the value contains itself"
    if len(above) > MAX_DEPTH:
        return path, f"nested deeper than {MAX_DEPTH}"
    children = _children(value, path)
    for part, name in children:
        found = _find_fault(part, name, (*above, id(value)))
        if found[0]:
            return found
    if not children:
        try:
            _pack(value, 0)
        except UnicodeEncodeError:
            return path, "text with lone surrogates cannot be carried: encode it to bytes"
        except (_Unencodable, ValueError, OverflowError, TypeError, RecursionError) as cause:
            return path, str(cause)
    return ("", "") if above else (path, f"tuples and sets nest deeper than {MAX_EXT_DEPTH}")


def _children(value: Any, path: str) -> list[tuple[Any, str]]:
    if isinstance(value, (datetime, time)):
        return [] if value.tzinfo is None or _zone_ok(value.tzinfo) else [(value.tzinfo, f"{path}.tz")]
    if isinstance(value, Mapping):
        keys = [(key, f"{path} key {key!r}") for key in value]
        return keys + [(part, f"{path}[{key!r}]") for key, part in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(part, f"{path}[{index}]") for index, part in enumerate(value)]
    if isinstance(value, Enum):
        return [(value.value, f"{path}.value")]
    if is_dataclass(value) and not isinstance(value, type):
        return [(getattr(value, f.name), f"{path}.{f.name}") for f in fields(value)]
    if _is_pydantic(value):
        return [(getattr(value, name), f"{path}.{name}") for name in type(value).model_fields]
    return []


def _zone_ok(tz: tzinfo) -> bool:
    try:
        _zone(tz)
    except _Unencodable:
        return False
    return True
