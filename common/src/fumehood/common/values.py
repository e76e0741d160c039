"""Frozen values without ``dataclasses``, and generics without ``typing``.

Those two libraries, with what they import, are a third of the memory of a zygote that has loaded
nothing else, and each fork pays for its zygote's memory (``docs/decisions/002``). What a zygote
holds is therefore built on these stand-ins; type checkers see the real names.
"""

from __future__ import annotations

from types import GenericAlias

__all__ = ["Generic", "ParamSpec", "TypeVar", "Value", "overload"]

TYPE_CHECKING = False  # the name by which type checkers know it, without importing ``typing``
if TYPE_CHECKING:
    from typing import Any, Generic, ParamSpec, TypeVar, overload
else:

    class Generic:
        """What a generic class inherits at run time: ``Call[int]`` works, and means nothing."""

        __slots__ = ()
        __class_getitem__ = classmethod(GenericAlias)

    def TypeVar(name, **_):  # noqa: N802
        """A name for annotations alone."""
        return name

    ParamSpec = TypeVar

    def overload(function):
        """The signatures before an implementation are for type checkers."""
        return function


class Value:
    """A frozen value: its fields are its slots, set once by ``_set`` in ``__init__``."""

    __slots__: tuple[str, ...] = ()

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: make another one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: make another one")

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Value)
            and type(self) is type(other)
            and self._fields() == other._fields()
        )

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        parts = (f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({', '.join(parts)})"

    def __getstate__(self) -> tuple[Any, ...]:
        return self._fields()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._set(**dict(zip(self.__slots__, state, strict=True)))
