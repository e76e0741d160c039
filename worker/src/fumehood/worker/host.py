"""What a process that is a node, and nothing else, does to itself before it starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from pathlib import Path

from fumehood.worker.sandbox import kernel
from fumehood.worker.sandbox.killer import children_of

_REAP_PERIOD = 2.0  # seconds; whoever wants an exit status has asked for it long before

_prepared = False


def prepare_process() -> None:
    """Make this process fit to be a node: call it once, in a process that is nothing else.

    Its memory and environment cannot be read by what it runs (it is not dumpable), orphans of a
    lost zygote come to it, and it may have as many open files as its host allows.
    """
    global _prepared  # noqa: PLW0603 - it is a fact about this process
    _prepared = True
    with contextlib.suppress(OSError):
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        kernel.become_subreaper()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def reap_orphans() -> None:
    """Reap for ever what came to this process when a zygote was lost, if it is a node alone.

    A process that is also something else has children that are not ours to reap.
    """
    ended: set[int] = set()
    while _prepared:
        await asyncio.sleep(_REAP_PERIOD)
        ended = _reap(ended)


def _reap(before: set[int]) -> set[int]:
    """Reap children that had ended ``before``, a round ago; the ones that have ended since."""
    ended = set(filter(_has_ended, children_of(os.getpid())))
    for pid in ended & before:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return ended - before


def _has_ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"
