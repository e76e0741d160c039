"""Plain decoded values made into what a task's annotations ask for.

Only classes that the task itself names are built, and only where the task's own code runs (or,
for a result, in the producer that made the call). A node never builds any. They are built through
their front door: fields with ``init=False`` are left to the class.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, cast

from fumehood.common.errors import FumehoodError

Builder = Callable[[Any], Any]


class RebuildError(FumehoodError, TypeError):
    """A value does not fit the annotation of the parameter that it was sent for.

    ``path`` leads from the parameter to the part at fault, as in ``orders[0].colour``.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.message = message
        self.path = path


class Plan:
    """How to rebuild one task's arguments and result. Made once per process, before forking."""

    __slots__ = ("_by_name", "_signature", "result")

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = _hints(function)
        self._signature = inspect.signature(function)
        self._by_name = {
            name: builder
            for name in self._signature.parameters
            if (builder := _builder_of_hint(hints.get(name, Any))) is not None
        }
        self.result: Builder | None = _builder_of_hint(hints.get("return", Any))

    @property
    def is_empty(self) -> bool:
        """Whether arguments can be used just as they were decoded."""
        return not self._by_name

    def arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments to call with. Raises ``TypeError`` when they do not fit the signature."""
        if not self._by_name:
            return list(args), dict(kwargs)
        bound = self._signature.bind(*args, **kwargs)
        for name, builder in self._by_name.items():
            if name in bound.arguments:
                parameter = self._signature.parameters[name]
                bound.arguments[name] = _argument(parameter, builder, bound.arguments[name])
        return list(bound.args), dict(bound.kwargs)


def _argument(parameter: inspect.Parameter, builder: Builder, value: Any) -> Any:
    name = parameter.name
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple(_at(f"{name}[{i}]", builder, part) for i, part in enumerate(value))
    if parameter.kind is parameter.VAR_KEYWORD:
        return {key: _at(f"{name}[{key!r}]", builder, part) for key, part in value.items()}
    if value is None and parameter.default is None:
        return None
    return _at(name, builder, value)


def _at(where: str, builder: Builder | None, value: Any) -> Any:
    """``value`` rebuilt; an error says where."""
    if builder is None:
        return value
    try:
        return builder(value)
    except RebuildError as cause:
        raise RebuildError(cause.message, where + cause.path) from cause.__cause__
    except Exception as cause:
        raise RebuildError(_one_line(cause), where) from cause


def _one_line(cause: Exception) -> str:
    return " ".join(str(cause).split()) or type(cause).__name__


# --- annotations ---------------------------------------------------------------------------


def _hints(owner: Any) -> dict[str, Any]:
    """Annotations resolved. One that cannot be is left out, and its values stay plain."""
    try:
        return typing.get_type_hints(owner)
    except Exception:  # noqa: BLE001 - an annotation is code, and may raise anything
        found: dict[str, Any] = {}
    for scope, namespace in _scopes(owner):
        annotations: dict[str, Any] = getattr(scope, "__annotations__", {})
        for name, annotation in annotations.items():
            single = types.SimpleNamespace(__annotations__={name: annotation})
            found.pop(name, None)
            try:
                found |= typing.get_type_hints(single, namespace, {**vars(scope)})
            except Exception:  # noqa: BLE001, S112 - this one stays plain
                continue
    return found


def _scopes(owner: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    if isinstance(owner, type):
        for base in reversed(owner.__mro__):
            if "__annotations__" in vars(base):
                yield base, vars(sys.modules.get(base.__module__, types))
    else:
        function = inspect.unwrap(owner)
        yield function, getattr(function, "__globals__", {})


def _builder_of_hint(annotation: Any) -> Builder | None:
    try:
        return builder_for(annotation)
    except Exception:  # noqa: BLE001 - an alias that never ends, or an annotation of another kind
        return None


def builder_for(annotation: Any) -> Builder | None:
    """What makes a plain value into ``annotation``; None where the plain value is right as is.

    A builder raises ``RebuildError`` for a value of the wrong shape.
    """
    annotation = _unwrapped(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Union or origin is types.UnionType:
        return _union(typing.get_args(annotation))
    if origin is typing.Literal:
        return _literal(typing.get_args(annotation))
    if isinstance(origin, type):
        return _container(origin, typing.get_args(annotation)) or _class(origin)
    return _class(annotation) if isinstance(annotation, type) else None


def _unwrapped(annotation: Any) -> Any:
    """What stands inside ``Annotated``, ``Final``, a ``NewType`` or a ``type`` statement."""
    while True:
        if typing.get_origin(annotation) in (typing.Annotated, typing.Final):
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


# --- builders ------------------------------------------------------------------------------


def _class(kind: Any) -> Builder | None:
    bases: tuple[type[Any], ...] = kind.__mro__
    if issubclass(kind, Enum):
        return cast("Builder", kind) if kind.__members__ else None
    if is_dataclass(kind):
        return _dataclass(kind)
    if tuple in bases and hasattr(kind, "_fields"):
        return _namedtuple(kind)
    pydantic = sys.modules.get("pydantic.main")
    if pydantic is not None and issubclass(kind, pydantic.BaseModel):
        return _model(kind)
    return None


def _shape(value: Any, kinds: tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kinds):
        raise RebuildError(f"expected {wanted}, got {type(value).__name__}")


def _dataclass(kind: Any) -> Builder:
    builders: dict[str, Builder | None] | None = None

    def build(value: Any) -> Any:
        nonlocal builders
        if isinstance(value, kind):
            return value
        _shape(value, (dict,), f"the fields of {kind.__qualname__}")
        if builders is None:  # not before the first use: a dataclass may refer to itself
            hints = _hints(kind)
            builders = {f.name: _builder_of_hint(hints.get(f.name)) for f in fields(kind) if f.init}
        unknown = value.keys() - {f.name for f in fields(kind)}
        if unknown:
            raise RebuildError(f"{kind.__qualname__} has no fields {sorted(map(repr, unknown))}")
        present = [(name, builder) for name, builder in builders.items() if name in value]
        return kind(**{name: _at(f".{name}", builder, value[name]) for name, builder in present})

    return build


def _namedtuple(kind: Any) -> Builder:
    builders: list[Builder | None] | None = None

    def build(value: Any) -> Any:
        nonlocal builders
        if isinstance(value, kind):
            return value
        _shape(value, (list, tuple), f"the fields of {kind.__qualname__}")
        if builders is None:
            hints = _hints(kind)
            builders = [_builder_of_hint(hints.get(name)) for name in kind._fields]
        if len(value) > len(builders):
            raise RebuildError(f"{kind.__qualname__} has {len(builders)} fields, got {len(value)}")
        named = zip(kind._fields, builders, value, strict=False)  # fewer: the rest has defaults
        return kind(*[_at(f".{name}", builder, part) for name, builder, part in named])

    return build


def _model(kind: Any) -> Builder:
    from pydantic import ValidationError

    def build(value: Any) -> Any:
        try:
            # Fields travel under their names; a producer in another language may use an alias.
            return kind.model_validate(value, strict=False, by_alias=True, by_name=True)
        except ValidationError as cause:
            first = cause.errors(include_url=False)[0]
            path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
            raise RebuildError(first["msg"], path) from cause

    return build


def _literal(options: Sequence[Any]) -> Builder | None:
    members = {option.value: option for option in options if isinstance(option, Enum)}
    return (lambda value: members.get(value, value)) if members else None


def _union(options: Sequence[Any]) -> Builder | None:
    """The first option, from left to right, that the value fits."""
    builders = [builder_for(option) or _plain(option) for option in options]
    if all(isinstance(builder, _Plain) for builder in builders):
        return None

    def build(value: Any) -> Any:
        reasons: list[str] = []
        for builder in builders:
            try:
                return builder(value)
            except Exception as cause:  # noqa: BLE001 - the next option may fit
                reasons.append(_one_line(cause))
        raise RebuildError(f"no option fits: {'; '.join(reasons)}")

    return build


class _Plain:
    """Takes values of one class as they are."""

    __slots__ = ("_kinds",)

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self._kinds = kinds

    def __call__(self, value: Any) -> Any:
        _shape(value, self._kinds, " or ".join(kind.__name__ for kind in self._kinds))
        return value


def _plain(option: Any) -> _Plain:
    option = _unwrapped(option)
    kind = typing.get_origin(option) or option
    try:
        isinstance(None, kind)
    except TypeError:  # what cannot be asked fits everything
        return _Plain((dict,) if typing.is_typeddict(kind) else (object,))
    return _Plain((int, float) if kind is float else (kind,))


def _container(origin: type, args: Sequence[Any]) -> Builder | None:
    if issubclass(origin, Mapping):
        return _mapping(args)
    if issubclass(origin, tuple):
        return _tuple(args)
    if issubclass(origin, Iterable) and len(args) == 1:
        return _items(origin, args[0])
    return None


# Other annotations, such as Sequence, leave a list a list and a tuple a tuple.
_BUILT: tuple[type[Any], ...] = (list, tuple, set, frozenset)


def _items(origin: Any, annotation: Any) -> Builder | None:
    each = builder_for(annotation)
    if each is None:
        return None

    def build(value: Any) -> Any:
        _shape(value, _BUILT, f"a {origin.__name__}")
        target = cast("Any", origin if origin in _BUILT else type(value))
        made = (_at(f"[{i}]", each, part) for i, part in enumerate(value))
        return target(made)

    return build


def _mapping(args: Sequence[Any]) -> Builder | None:
    key, part = (builder_for(arg) for arg in args) if len(args) == 2 else (None, None)
    if key is None and part is None:
        return None

    def build(value: Any) -> Any:
        _shape(value, (dict,), "a dict")
        return {_at(f" key {k!r}", key, k): _at(f"[{k!r}]", part, v) for k, v in value.items()}

    return build


def _tuple(args: Sequence[Any]) -> Builder | None:
    if len(args) == 2 and args[1] is Ellipsis:
        return _items(tuple, args[0])
    parts = [builder_for(arg) for arg in args]
    if not any(parts):
        return None

    def build(value: Any) -> Any:
        _shape(value, (list, tuple), "a tuple")
        if len(value) != len(parts):
            raise RebuildError(f"expected {len(parts)} items, got {len(value)}")
        paired = enumerate(zip(parts, value, strict=True))
        return tuple(_at(f"[{i}]", builder, part) for i, (builder, part) in paired)

    return build
