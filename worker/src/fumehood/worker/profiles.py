"""Which tasks are declared ``untrusted``: nothing here can enforce that profile yet.

A zygote tells its node the names of its tasks and nothing else, and the node itself imports no
task module. So the zygote imports this module last of all, and it declares a mark for each such
task: a task of its own, whose name the node recognises.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from fumehood.common.task import registry, task

_MARK = "fumehood.untrusted:"


def refused(name: str, known: AbstractSet[str]) -> bool:
    """Whether the task of that name must not be run by a node that knows the names ``known``."""
    if name.startswith(_MARK) or _MARK + name in known:
        return True
    return name in registry and registry.get(name).options.profile == "untrusted"


def _never() -> None:
    raise AssertionError("a mark is never run")


def _mark() -> None:
    for name in registry.names():
        if registry.get(name).options.profile == "untrusted":
            task(name=_MARK + name)(_never)


_mark()
