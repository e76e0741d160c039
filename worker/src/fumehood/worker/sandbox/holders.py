"""Under which names objects are held: as a global of a module, or a little way below one.

Looked at are globals, what classes of the module have as attributes, what objects have as
attributes, elements of containers, and defaults of functions, two steps below a global at most.
Code of the objects is not run: no property, no ``__getattr__``, no ``__eq__``.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import islice
from types import FunctionType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

_DEPTH = 2  # steps below a global
_ELEMENTS_MAX = 1000  # of a container
_SEQUENCES: tuple[type[Any], ...] = (list, tuple, set, frozenset, deque)
_ITEMS: Any = vars(dict)["items"]  # a subclass's own might run its code
# By identity, for a metaclass may define what it is to equal or to be hashed.
_LEAVES = frozenset(map(id, (str, bytes, int, float, complex, bool, type(None), ModuleType)))


def variables(module: str) -> dict[str, Any]:
    """The globals of a loaded module, without running code of what may stand in its place."""
    return _attributes(sys.modules.get(module))


def find(
    modules: Iterable[str], wanted: Callable[[object], bool]
) -> Iterator[tuple[str, str, object]]:
    """Module, name within it and object, once for each that is ``wanted``, by its nearest name.

    The last of ``modules`` is searched first: in the order in which their imports began, it is
    the one that made what others only imported from it.
    """
    found: set[int] = set()
    for name in reversed(list(modules)):
        seen: set[int] = set()
        level: list[tuple[str, object]] = list(variables(name).items())
        for depth in range(_DEPTH + 1):
            below: list[tuple[str, object]] = []
            for where, value in level:
                if id(value) in seen or id(type(value)) in _LEAVES:
                    continue
                seen.add(id(value))
                if wanted(value):
                    if id(value) not in found:
                        found.add(id(value))
                        yield name, where, value
                elif depth < _DEPTH:
                    try:
                        inside = list(_inside(value, type(value), name))
                    except Exception:  # another thread changes it, or it is of a broken kind
                        inside = []
                    below += [(where + step, inner) for step, inner in inside]
            level = below


def _inside(value: Any, kind: type[object], module: str) -> Iterator[tuple[str, object]]:
    if issubclass(kind, dict):
        pairs: Iterable[tuple[Any, Any]] = _ITEMS(value)
        yield from ((f"[{_short(key)}]", inner) for key, inner in _few(pairs))
    elif (iterate := _iterator_of(kind)) is not None:
        yield from ((f"[{number}]", inner) for number, inner in enumerate(_few(iterate(value))))
    elif issubclass(kind, type):
        attributes: dict[str, Any] = type.__dict__["__dict__"].__get__(value)
        if attributes.get("__module__") == module:
            yield from ((f".{name}", inner) for name, inner in _few(attributes.items()))
    elif kind is FunctionType:
        yield from (("()", inner) for inner in (value.__defaults__ or ()))
    elif not issubclass(kind, ModuleType):
        yield from ((f".{name}", inner) for name, inner in _few(_attributes(value).items()))


def _iterator_of(kind: type[object]) -> Callable[[Any], Iterator[object]] | None:
    """How to iterate over containers of this kind without their own ``__iter__``."""
    for sequence in _SEQUENCES:
        if issubclass(kind, sequence):
            iterate: Callable[[Any], Iterator[object]] = sequence.__iter__
            return iterate
    return None


def _attributes(value: object) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    try:
        found = object.__getattribute__(value, "__dict__")
    except Exception:  # it has none, or a descriptor of this name that fails
        return {}
    return found if type(found) is dict else {}


def _few(values: Iterable[Any]) -> list[Any]:
    """The first of ``values``, in a list: what they come from may change meanwhile."""
    return list(islice(values, _ELEMENTS_MAX))


def _short(key: object) -> str:
    return repr(key)[:40] if type(key) in (str, int) else "..."
