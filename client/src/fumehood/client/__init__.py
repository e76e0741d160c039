"""The producer's side of Fumehood: enqueue calls, await their outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fumehood.client.client import Client as Client
    from fumehood.client.errors import ClientMisused as ClientMisused
    from fumehood.client.errors import PartlyEnqueued as PartlyEnqueued
    from fumehood.client.handle import JobHandle as JobHandle

_HOME = {
    "Client": "fumehood.client.client",
    "ClientMisused": "fumehood.client.errors",
    "JobHandle": "fumehood.client.handle",
    "PartlyEnqueued": "fumehood.client.errors",
}

__all__ = ["Client", "ClientMisused", "JobHandle", "PartlyEnqueued"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): the package itself stays light."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
