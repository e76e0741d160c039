"""The path to the part of a value that cannot be carried. Loaded only when an encode failed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import Any, cast

from fumehood.common.codec import Unencodable, pack, parts_of

MAX_DEPTH = 500

Part = tuple[Any, str]


def find_fault(value: Any, root: str) -> tuple[str, str] | None:
    """The path to the first part of ``value`` that cannot be carried, and why; None if none.

    Walks with a stack of its own: what is nested too deeply is one of the faults to find.
    """
    trail: list[tuple[int, str, Iterator[Part]]] = [(0, root, iter([(value, root)]))]
    while trail:
        path = trail[-1][1]
        try:
            part, path = next(trail[-1][2])
            if any(id(part) == above for above, _, _ in trail):
                raise Unencodable("the value contains itself")
            if len(trail) > MAX_DEPTH:
                raise Unencodable(f"nested deeper than {MAX_DEPTH}")
            children = _children(part, path)
            if children is None:
                pack(part)
            else:
                trail.append((id(part), path, children))
        except StopIteration:
            trail.pop()
        except Unencodable as cause:
            return _cut(path + cause.within, 200), str(cause)
        except Exception as cause:  # noqa: BLE001 - a value's own code may raise anything
            return _cut(path, 200), _why(cause)
    return None


def _why(cause: Exception) -> str:
    if isinstance(cause, UnicodeEncodeError):
        return "text with lone surrogates cannot be carried: encode it to bytes"
    if isinstance(cause, BufferError):
        return "a memoryview with gaps cannot be carried: use bytes(view)"
    text = _cut(" ".join(str(cause).split()), 200)
    return f"reading it raised {type(cause).__name__}" + (f": {text}" if text else "")


def _children(value: Any, path: str) -> Iterator[Part] | None:
    """The parts of ``value`` with their paths; None for what has none."""
    kind = cast("Any", type(value))
    if issubclass(kind, Enum):
        return iter([(value.value, f"{path}.value")])
    if issubclass(kind, (set, frozenset)):
        return _of_set(value, path)
    if issubclass(kind, (list, tuple)):
        return ((part, f"{path}[{index}]") for index, part in enumerate(value))
    if (parts := parts_of(value)) is not None:
        return ((part, f"{path}.{name}") for name, part in parts.items())
    if issubclass(kind, Mapping):
        return _of_mapping(cast("Mapping[Any, Any]", value), path)
    return None


def _of_set(value: Collection[Any], path: str) -> Iterator[Part]:
    for element in value:
        within = f" element {_short(element)}"
        yield element, path + within
        _check_key(element, within)
    _check_apart(value)


def _of_mapping(value: Mapping[Any, Any], path: str) -> Iterator[Part]:
    for key, part in value.items():
        within = f" key {_short(key)}"
        yield key, path + within
        _check_key(key, within)
        yield part, f"{path}[{_short(key)}]"
    _check_apart(value)


def _check_key(key: Any, within: str) -> None:
    try:
        pack({key: None})
    except Unencodable:
        raise Unencodable(
            "it is read back as a dict or a list, which can be no key and no element of a set",
            within,
        ) from None


def _check_apart(keys: Collection[Any]) -> None:
    try:
        pack(dict.fromkeys(keys))
    except Unencodable:
        raise Unencodable("two of its keys or elements are alike once encoded") from None


def _short(key: Any) -> str:
    return _cut(repr(key), 60)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
