"""The node's side of Fumehood."""

from importlib import import_module
from typing import Final

# Public name -> module that defines it. Lazy (PEP 562): one name does not pay for all of them.
_HOMES: Final[dict[str, str]] = {}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
