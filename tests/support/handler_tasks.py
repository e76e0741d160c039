"""A script of tasks that uses ``run_handler`` in the ways that a program may.

Run as ``python -m support.handler_tasks WHAT``; prints what came of it.
"""

from __future__ import annotations

import os
import sys
import time

from fumehood.common import task
from fumehood.worker import run_handler


@task
def double(n: int) -> int:
    return 2 * n


@task
def where(parent: int) -> bool:
    return os.getpid() != parent


@task
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"


def _call(n: int) -> int:
    return int(run_handler("support.handler_tasks.double", [n], {}, 20.0, False))


def _fork_and_call() -> None:
    print(_call(1), flush=True)
    child = os.fork()
    if child == 0:
        print(_call(2), flush=True)
        sys.exit(0)
    os.waitpid(child, 0)
    print(_call(3), flush=True)


def _hang() -> None:
    print(_call(1), flush=True)
    if os.fork() == 0:
        time.sleep(300)
    print("forked", flush=True)
    run_handler("support.handler_tasks.nap", [300], {}, 600.0, False)


if __name__ == "__main__":
    import support.handler_tasks  # noqa: F401, PLW0406 - as a task's module is known elsewhere

    {"once": lambda: print(_call(21)), "fork": _fork_and_call, "hang": _hang}[sys.argv[1]]()
