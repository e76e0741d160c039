"""Plain decoded values made into what a task's annotations ask for.

Only classes that the task itself names are built, and only where the task's own code runs (or,
for a result, in the producer that made the call). A node never builds any.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

Builder = Callable[[Any], Any]


class RebuildError(TypeError):
    """A value does not fit the annotation of the parameter that it was sent for."""


class Plan:
    """How to rebuild one task's arguments and result. Made once per process, before forking."""

    __slots__ = ("_by_name", "_signature", "result")

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = _hints(function)
        self._signature = inspect.signature(function)
        self._by_name = {
            name: builder
            for name in self._signature.parameters
            if (builder := builder_for(hints.get(name, Any))) is not None
        }
        self.result: Builder | None = builder_for(hints.get("return", Any))

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments to call with. Raises ``TypeError`` when they do not fit the signature."""
        if not self._by_name:
            return list(args), dict(kwargs)
        bound = self._signature.bind(*args, **kwargs)
        for name, builder in self._by_name.items():
            if name in bound.arguments:
                kind = self._signature.parameters[name].kind
                bound.arguments[name] = _rebuild(name, kind, builder, bound.arguments[name])
        return list(bound.args), dict(bound.kwargs)


def _rebuild(name: str, kind: Any, builder: Builder, value: Any) -> Any:
    try:
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return tuple(builder(part) for part in value)
        if kind is inspect.Parameter.VAR_KEYWORD:
            return {key: builder(part) for key, part in value.items()}
        return builder(value)
    except Exception as cause:
        raise RebuildError(f"argument {name!r}: {cause}") from cause


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # a forward reference that cannot be resolved: values stay plain
        return {}


def builder_for(annotation: Any) -> Builder | None:
    """What makes a plain value into ``annotation``; None where the plain value is right as it is."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return builder_for(typing.get_args(annotation)[0])
    if origin is typing.Union or origin is types.UnionType:
        return _union(typing.get_args(annotation))
    if origin is not None:
        return _container(origin, typing.get_args(annotation))
    if not isinstance(annotation, type):
        return None
    if issubclass(annotation, Enum):
        return annotation
    if is_dataclass(annotation):
        return _dataclass(annotation)
    if hasattr(annotation, "model_fields") and hasattr(annotation, "model_validate"):
        return annotation.model_validate
    return None


def _dataclass(kind: Any) -> Builder:
    # Hints are resolved at the first use: a dataclass may refer to itself.
    cache: dict[str, Builder | None] = {}

    def build(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise RebuildError(f"expected the fields of {kind.__qualname__}, got {type(value).__name__}")
        if not cache:
            hints = typing.get_type_hints(kind)
            cache.update({f.name: builder_for(hints.get(f.name, Any)) for f in fields(kind) if f.init})
        unknown = set(value) - {f.name for f in fields(kind)}
        if unknown:
            raise RebuildError(f"{kind.__qualname__} has no fields {sorted(map(str, unknown))}")
        made = {name: (b(value[name]) if b else value[name]) for name, b in cache.items() if name in value}
        return kind(**made)

    return build


def _union(options: Sequence[Any]) -> Builder | None:
    builders = [(option, builder_for(option)) for option in options]
    if not any(builder for _, builder in builders):
        return None
    plain = tuple(o for o, builder in builders if builder is None and isinstance(o, type))

    def build(value: Any) -> Any:
        if isinstance(value, plain):
            return value
        for _, builder in builders:
            if builder is not None:
                try:
                    return builder(value)
                except Exception:  # noqa: S112 - the next option may fit
                    continue
        return value

    return build


def _container(origin: Any, args: Sequence[Any]) -> Builder | None:
    if not isinstance(origin, type):
        return None
    if issubclass(origin, Mapping):
        return _mapping(args)
    if issubclass(origin, tuple):
        return _tuple(args)
    if issubclass(origin, (Sequence, AbstractSet)) and args:
        each = builder_for(args[0])
        return None if each is None else lambda value: type(value)(map(each, value))
    return None


def _mapping(args: Sequence[Any]) -> Builder | None:
    key, part = (builder_for(arg) for arg in args) if len(args) == 2 else (None, None)
    if key is None and part is None:
        return None

    def build(value: Any) -> Any:
        return {(key(k) if key else k): (part(v) if part else v) for k, v in value.items()}

    return build


def _tuple(args: Sequence[Any]) -> Builder | None:
    if len(args) == 2 and args[1] is Ellipsis:
        each = builder_for(args[0])
        return None if each is None else lambda value: tuple(map(each, value))
    parts = [builder_for(arg) for arg in args]
    if not any(parts):
        return None
    return lambda value: tuple(b(v) if b else v for b, v in zip(parts, value, strict=True))
