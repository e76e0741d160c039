"""From the dotted name of a task, as typed at a command line, to the task."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from fumehood.common.console import see_current_folder
from fumehood.common.errors import ConfigurationError
from fumehood.common.task import Task, registry


def find_task(name: str) -> Task[..., Any]:
    """The task ``name``, such as ``app.tasks.add``; its module is imported from the current folder.

    Found by its registered name, else as the attribute that the dotted name leads to. Raises
    ``ConfigurationError``, which says what was not found.
    """
    see_current_folder()
    module, path = _import_longest(name)
    if name in registry:
        return registry.get(name)
    found: Any = module
    for part in path:
        found = getattr(found, part, None)
    if isinstance(found, Task):
        return found  # pyright: ignore[reportUnknownVariableType]
    beside = [known for known in registry.names() if known.startswith(f"{module.__name__}.")]
    has = f"its tasks are {', '.join(beside)}" if beside else "it declares no task"
    raise ConfigurationError(f"{name!r} is not a task: {module.__name__} was imported, and {has}")


def _import_longest(name: str) -> tuple[ModuleType, list[str]]:
    """The module that the dotted name begins with, as deep as it goes, and what follows."""
    parts = name.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ConfigurationError(f"{name!r} is not the name of a task: write module.function")
    for count in range(len(parts) - 1, 0, -1):
        module = _import(".".join(parts[:count]))
        if module is not None:
            return module, parts[count:]
    raise ConfigurationError(
        f"no module named {'.'.join(parts[:-1])!r}: it is looked for in the current folder and "
        "among what is installed"
    )


def _import(name: str) -> ModuleType | None:
    """The module, or None if there is none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as cause:
        if cause.name is not None and f"{name}.".startswith(f"{cause.name}."):
            return None
        raise ConfigurationError(f"cannot import {name!r}: {cause}") from cause
    except (Exception, SystemExit) as cause:
        raise ConfigurationError(
            f"cannot import {name!r}: {type(cause).__name__}: {cause}"
        ) from cause
