"""Broker adapters behind one interface: ``connect(url)`` gives the one that the URL names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Not lazily: the function has the name of its module, and whichever is bound last wins. Imported
# here, the function is. It costs little: no adapter is imported before a URL asks for it.
from fumehood.broker.connect import connect as connect

if TYPE_CHECKING:
    from fumehood.broker.interface import Broker as Broker
    from fumehood.broker.interface import Delivery as Delivery
    from fumehood.broker.interface import Subscription as Subscription

_HOME = {
    "Broker": "fumehood.broker.interface",
    "Delivery": "fumehood.broker.interface",
    "Subscription": "fumehood.broker.interface",
}

__all__ = ["Broker", "Delivery", "Subscription", "connect"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): the package itself stays light."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
