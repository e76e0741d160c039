"""The hook that ``threading`` runs after each fork, held back where there is nothing for it to do.

It forgets the threads that a fork left behind and renews locks that they might have held. That
touches more than a hundred pages, at 4 us each a third of a small job, and nearly every program
imports ``threading``, by way of ``logging`` or ``subprocess``. A zygote has one thread, and forks
from it: no thread is left behind, and no lock is held.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_register = os.register_at_fork
_held: list[Callable[[], Any]] = []


def hold_back() -> None:
    """From now on keep the hook of ``threading`` from being registered. Call before imports."""

    def register(**hooks: Any) -> None:
        hook = hooks.get("after_in_child")
        if getattr(hook, "__module__", "") == "threading":
            _held.append(hooks.pop("after_in_child"))
        if hooks:
            _register(**hooks)

    os.register_at_fork = register


def settle(threads: int) -> None:
    """After the imports: let the hook go for good with one thread, register it with more."""
    os.register_at_fork = _register
    if threads > 1:
        for hook in _held:
            _register(after_in_child=hook)
