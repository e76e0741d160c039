"""What a process that is a node, and nothing else, does to itself before it starts."""

from __future__ import annotations

import contextlib
import resource

from fumehood.worker.sandbox import kernel


def prepare_process() -> None:
    """Make this process fit to be a node: call it once, in a process that is nothing else.

    Its memory and environment cannot be read by what it runs (it is not dumpable), orphans of a
    lost zygote come to it, and it may have as many open files as its host allows.
    """
    with contextlib.suppress(OSError):
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        kernel.become_subreaper()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
