"""A job that leaves the process that runs it, to see whether a kill finds all of it."""

from __future__ import annotations

import os
import time

from fumehood.common import task

_DAEMON_SECONDS = 30.0  # what a kill misses must not stay for ever


@task
def tree(daemons: int) -> None:
    """Start daemons (forked twice, in sessions of their own) and hang. Prints their ids."""
    for _ in range(daemons):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(1, b"%d\n" % os.getpid())
                time.sleep(_DAEMON_SECONDS)
            os._exit(0)
        os.waitpid(pid, 0)
    time.sleep(_DAEMON_SECONDS)
