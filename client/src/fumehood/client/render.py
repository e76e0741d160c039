"""Values as JSON, for people and scripts at a command line."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from enum import Enum
from typing import Any

FALLBACKS = (
    "What JSON lacks is shown as text or a list: times in ISO 8601, bytes in base64, durations in "
    "seconds, tuples and sets as lists, dataclasses and models as objects, anything else as str()."
)


def as_json(value: Any) -> str:
    """One line of JSON for any value; ``FALLBACKS`` says how."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    for kind, plain in _WAYS:
        if isinstance(value, kind):
            return plain(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    dump: Callable[[], Any] | None = getattr(value, "model_dump", None)
    return str(value) if dump is None else _plain(dump())


def _plain_map(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {_key(key): _plain(part) for key, part in value.items()}


def _plain_list(value: Iterable[Any]) -> list[Any]:
    return [_plain(part) for part in value]


def _key(key: Any) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else json.dumps(plain, allow_nan=False)


# The order matters: an Enum may be a str, and a datetime is a date.
_WAYS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (Enum, lambda value: _plain(value.value)),
    (int, int),
    (str, str),
    (float, lambda value: value if math.isfinite(value) else str(value)),
    ((datetime, date, time), lambda value: value.isoformat()),
    (timedelta, timedelta.total_seconds),
    ((bytes, bytearray, memoryview), lambda value: base64.b64encode(value).decode()),
    (Mapping, _plain_map),
    ((set, frozenset), lambda value: sorted(_plain_list(value), key=repr)),
    ((list, tuple), _plain_list),
)
