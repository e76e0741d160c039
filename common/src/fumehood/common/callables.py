"""What a task's function is and takes.

``inspect`` answers these questions for every callable there is. For plain functions, which most
tasks are, a look at the code object does, and the zygote stays without that library.
"""

from __future__ import annotations

from types import FunctionType

from fumehood.common.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable
    from typing import Any, TypeGuard

# Flags of code objects, as in the ``inspect`` module.
_GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 0x20, 0x80, 0x200


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature. Raises ``ConfigurationError`` for what has none."""
    from inspect import signature

    try:
        return signature(function)
    except (TypeError, ValueError) as cause:
        raise ConfigurationError(f"{function!r} cannot be a task: {cause}") from None


def arity_of(function: Callable[..., Any]) -> range:
    """How many positional arguments make a complete call; empty if they alone never do."""
    if not _is_plain_function(function):
        return _arity_by_signature(function)
    code = function.__code__
    if code.co_kwonlyargcount > len(function.__kwdefaults__ or ()):
        return range(0)
    least = code.co_argcount - len(function.__defaults__ or ())
    return range(least, code.co_argcount + 1)


def _arity_by_signature(function: Callable[..., Any]) -> range:
    parameters = signature_of(function).parameters.values()
    positional = [p for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
    required = [p for p in positional if p.default is p.empty]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return range(0)
    return range(len(required), len(positional) + 1)


def _is_plain_function(function: object) -> TypeGuard[FunctionType]:
    return type(function) is FunctionType and not {"__wrapped__", "__signature__"} & set(
        function.__dict__
    )


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether a call gives a coroutine."""
    if type(function) is FunctionType:
        return bool(function.__code__.co_flags & _COROUTINE) or hasattr(
            function, "_is_coroutine_mark"
        )
    from inspect import iscoroutinefunction

    return iscoroutinefunction(function)


def is_generator_function(function: Callable[..., Any]) -> bool:
    """Whether a call gives a generator, async ones included."""
    if type(function) is FunctionType:
        return bool(function.__code__.co_flags & (_GENERATOR | _ASYNC_GENERATOR))
    from inspect import isasyncgenfunction, isgeneratorfunction

    return isgeneratorfunction(function) or isasyncgenfunction(function)


_PLAIN = (int, float, str, bytes, bool, object, None, type(None))
_PLAIN_NAMES = frozenset(("int", "float", "str", "bytes", "bool", "object", "None"))


def is_annotated_plainly(function: Callable[..., Any]) -> bool:
    """Whether no annotation of a parameter asks for more than msgpack's own scalars."""
    if not _is_plain_function(function):
        return False
    known = function.__globals__
    return all(
        name == "return"
        or (hint in _PLAIN_NAMES and hint not in known if type(hint) is str else hint in _PLAIN)
        for name, hint in function.__annotations__.items()
    )
