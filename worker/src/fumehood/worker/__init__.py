"""Worker nodes and sandboxes. Names are imported when they are first used (PEP 562)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fumehood.worker.handler import run_handler as run_handler
    from fumehood.worker.sandbox.sandbox import Sandbox as Sandbox
    from fumehood.worker.worker import Worker as Worker

_HOME = {
    "Sandbox": "fumehood.worker.sandbox.sandbox",
    "Worker": "fumehood.worker.worker",
    "run_handler": "fumehood.worker.handler",
}

__all__ = ["Sandbox", "Worker", "run_handler"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
