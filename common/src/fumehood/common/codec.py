"""Values as bytes: msgpack, and extension types for what msgpack lacks (``docs/protocol.md``).

Decoding builds plain values only. Enum members, dataclasses and pydantic models travel as their
plain parts; ``rebuild.py`` makes them anew from a task's own annotations, where the task runs.

Every sandbox is forked from a process that holds this module: what only some values need (uuid,
zoneinfo, decimal, pathlib) is imported when such a value is read, and a value can only be of such
a type when its module is loaded already.
"""

from __future__ import annotations

import sys
from _collections_abc import Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo

import msgpack

from fumehood.common.decoding import (
    EXT_BIGINT,
    EXT_COMPLEX,
    EXT_DATE,
    EXT_DATETIME,
    EXT_DECIMAL,
    EXT_FROZENSET,
    EXT_PATH,
    EXT_SET,
    EXT_TIME,
    EXT_TIMEDELTA,
    EXT_TUPLE,
    EXT_UUID,
    MAX_EXT_DEPTH,
    READING,
    SKIM_ABOVE,
    decode,
)
from fumehood.common.errors import DecodeError, InvalidArguments

__all__ = [
    "READING",
    "SKIM_ABOVE",
    "Unencodable",
    "decode",
    "encode",
    "pack",
    "parts_of",
    "type_name",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import Enum
    from typing import Any

# The packer's usual buffer is mapped and unmapped anew for each extension: four times slower.
_PACKING: dict[str, Any] = {"strict_types": True, "use_bin_type": True, "buf_size": 4096}


class Unencodable(Exception):
    """What the packer meets and cannot carry; ``encode`` then looks for the path to it.

    ``within`` leads on from the value in hand to the part at fault, such as ``.tz``.
    """

    def __init__(self, message: str, within: str = "") -> None:
        super().__init__(message)
        self.within = within


def encode(value: Any, root: str = "value") -> bytes:
    """Encode ``value``. Raises ``InvalidArguments`` with the path to what cannot be carried.

    ``root`` is the name that the path starts with, such as ``args``.
    """
    try:
        return pack(value)
    except Exception as cause:  # noqa: BLE001 - a value's own code may raise anything
        from fumehood.common.fault import find_fault

        path, why = find_fault(value, root) or (root, str(cause) or type(cause).__name__)
        raise InvalidArguments(why, path) from None


# --- writing -------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """``encode`` without a name for the fault: raises whatever went wrong."""
    writing = _Writing()
    packed = writing.pack(value)
    if writing.doubtful:
        try:
            decode(packed)
        except DecodeError as cause:
            raise Unencodable(f"it could not be read back: {cause}") from None
    return packed


class _Writing:
    """One value being written."""

    __slots__ = ("depth", "doubtful")

    def __init__(self) -> None:
        self.depth = 0
        # Set by what is hashable here and may not be so when read: a frozen dataclass is read as
        # a dict, which can be no key and no element of a set. Such a value is read back at once.
        self.doubtful = False

    def pack(self, value: Any) -> bytes:
        return msgpack.packb(value, default=self.plain, **_PACKING)

    def plain(self, obj: Any) -> Any:
        """What the packer cannot write by itself, as an ``ExtType`` or something plainer."""
        kind = _class_of(obj)
        writer = _WRITERS.get(kind) or _writer_of(kind)
        return writer(obj, self)

    def ext(self, code: int, parts: list[Any]) -> msgpack.ExtType:
        """An extension that holds an array."""
        if self.depth >= MAX_EXT_DEPTH:
            raise Unencodable(f"tuples and sets nest deeper than {MAX_EXT_DEPTH}")
        self.depth += 1
        packed = self.pack(parts)
        self.depth -= 1
        return msgpack.ExtType(code, packed)


if TYPE_CHECKING:
    _Writer = Callable[[Any, _Writing], Any]
_class_of: Callable[[Any], type[Any]] = type
_NATIVE = frozenset((type(None), bool, float, str, bytes, list, dict))


def _writer_of(kind: type[Any]) -> _Writer:
    """The writer for a class that is in no table. Asks the class: ``__class__`` may tell lies."""
    enum = sys.modules.get("enum")  # what was never loaded has no instance
    if enum is not None and issubclass(kind, enum.Enum):
        return _write_enum
    for base in kind.__mro__:
        if (writer := _WRITERS.get(base)) is not None:
            return writer
    for module, name, writer in _WRITERS_IF_LOADED:
        if module in sys.modules and issubclass(kind, getattr(sys.modules[module], name, ())):
            return writer
    if hasattr(kind, "__dataclass_fields__"):
        return _write_fields
    if issubclass(kind, Mapping):
        return lambda obj, _: dict(obj)
    raise Unencodable(f"a value of type {type_name(kind)} cannot be carried in a message")


def type_name(kind: type[Any]) -> str:
    """A class as error messages name it."""
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


def parts_of(obj: Any) -> dict[str, Any] | None:
    """The fields of a dataclass instance or pydantic model; None for anything else."""
    kind = _class_of(obj)
    if hasattr(kind, "__dataclass_fields__"):
        from dataclasses import fields

        return {field.name: getattr(obj, field.name) for field in fields(kind)}
    pydantic = sys.modules.get("pydantic.main")
    if pydantic is not None and issubclass(kind, pydantic.BaseModel):
        extra: dict[str, Any] = obj.__pydantic_extra__ or {}
        return {name: getattr(obj, name) for name in kind.model_fields} | extra
    return None


def _write_fields(obj: Any, writing: _Writing) -> Any:
    writing.doubtful |= type(obj).__hash__ is not None
    return parts_of(obj)


def _write_model(obj: Any, writing: _Writing) -> Any:
    if not obj.__pydantic_root_model__:
        return _write_fields(obj, writing)
    writing.doubtful |= type(obj).__hash__ is not None
    return _write_part(obj.root, writing)


def _write_enum(obj: Enum, writing: _Writing) -> Any:
    writing.doubtful = True
    return _write_part(obj.value, writing)


def _write_part(value: Any, writing: _Writing) -> Any:
    # The packer asks once per value, so an answer must be something that it can write itself.
    return value if type(value) in _NATIVE else writing.plain(value)


def _write_int(obj: int, _: _Writing) -> Any:
    plain = int.__int__(obj)
    if -(1 << 63) <= plain < (1 << 64):
        return plain  # of a subclass of int
    # Hexadecimal, not decimal: CPython limits the digits of decimal conversions.
    return msgpack.ExtType(EXT_BIGINT, b"%x" % plain)


def _write_moment(code: int) -> _Writer:
    def write(obj: datetime | time, writing: _Writing) -> Any:
        local = obj.replace(tzinfo=None, fold=0).isoformat()
        return writing.ext(code, [local, _zone(obj.tzinfo), obj.fold])

    return write


def _zone(tz: tzinfo | None) -> str | int | None:
    """A zone as its IANA key, a fixed offset as microseconds, none as None."""
    if tz is None:
        return None
    if isinstance(tz, timezone):
        return tz.utcoffset(None) // timedelta(microseconds=1)
    zoneinfo = sys.modules.get("zoneinfo")
    key: str | None = getattr(tz, "key", None)
    if key and zoneinfo is not None and isinstance(tz, zoneinfo.ZoneInfo):
        return key
    raise Unencodable(
        f"a zone of type {type_name(type(tz))} cannot be carried: "
        "use zoneinfo.ZoneInfo with a key, or datetime.timezone",
        ".tz",
    )


def _write_windows_path(obj: Any, _: _Writing) -> Any:
    raise Unencodable("a Windows path means nothing on a node: send it as text")


def _ext_items(code: int) -> _Writer:
    return lambda obj, writing: writing.ext(code, list(obj))


def _ext_text(code: int, text: Callable[[Any], str]) -> _Writer:
    return lambda obj, _: msgpack.ExtType(code, text(obj).encode())


# A subclass travels as the first of its bases that stands here.
_WRITERS: dict[type, _Writer] = {
    tuple: _ext_items(EXT_TUPLE),
    datetime: _write_moment(EXT_DATETIME),
    date: _ext_text(EXT_DATE, date.isoformat),
    time: _write_moment(EXT_TIME),
    timedelta: lambda obj, writing: writing.ext(
        EXT_TIMEDELTA, [obj.days, obj.seconds, obj.microseconds]
    ),
    set: _ext_items(EXT_SET),
    frozenset: _ext_items(EXT_FROZENSET),
    int: _write_int,
    complex: lambda obj, writing: writing.ext(EXT_COMPLEX, [obj.real, obj.imag]),
    str: lambda obj, _: str.__str__(obj),
    float: lambda obj, _: float.__float__(obj),
    list: lambda obj, _: list(obj),
    dict: lambda obj, _: dict(obj),
    bytes: lambda obj, _: bytes(obj),
    bytearray: lambda obj, _: bytes(obj),
}

# Module, class, writer: consulted only when the module is loaded.
_WRITERS_IF_LOADED: tuple[tuple[str, str, _Writer], ...] = (
    ("uuid", "UUID", lambda obj, _: msgpack.ExtType(EXT_UUID, obj.bytes)),
    ("decimal", "Decimal", _ext_text(EXT_DECIMAL, str)),
    ("pathlib", "PurePosixPath", _ext_text(EXT_PATH, str)),
    ("pathlib", "PureWindowsPath", _write_windows_path),
    ("pydantic.main", "BaseModel", _write_model),
)
