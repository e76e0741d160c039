"""Who is measured, and how each is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rivals import environments
from rivals.environments import VENVS, Unavailable

HERE = Path(__file__).resolve().parent
Command = tuple[Sequence[str], Mapping[str, str]]  # and environment variables besides


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table. ``prepare`` makes what it needs and may raise ``Unavailable``."""

    key: str
    title: str
    prepare: Callable[[int, float], Command]  # of slots, and of when it has to be done
    note: str = ""


def _ours(kind: str) -> Callable[[int, float], Command]:
    program = str(HERE / "sandbox_runner.py")
    return lambda slots, _: ([sys.executable, program, kind, str(slots)], {})


def _bare(_: int, __: float) -> Command:
    # The environment of a zygote: C functions are resolved before the forks.
    return [sys.executable, str(HERE / "bare_fork.py"), "zygote"], {"LD_BIND_NOW": "1"}


def _smallest(_: int, __: float) -> Command:
    return [sys.executable, "-S", "-E", str(HERE / "bare_fork.py")], {}


def _floor(_: int, __: float) -> Command:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Unavailable("there is no C compiler")
    VENVS.mkdir(exist_ok=True)
    program = VENVS / "fork_floor"
    made = subprocess.run(
        [compiler, "-O2", "-o", str(program), str(HERE / "fork_floor.c")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if made.returncode:
        raise Unavailable(f"{compiler} failed: {made.stderr.strip().splitlines()[-1:]}")
    return [str(program)], {}


def _rival(name: str, module: str, *words: str) -> Callable[[int, float], Command]:
    """A rival's module in the rival's environment; the word SLOTS stands for their number."""

    def prepare(slots: int, end: float) -> Command:
        python = str(environments.environment(name, end))
        filled = [str(slots) if word == "SLOTS" else word for word in words]
        return [python, "-m", f"rivals.{module}", *filled], {}

    return prepare


def _rq(slots: int, end: float) -> Command:
    python = str(environments.environment("rq", end))
    redis, environ = environments.redis_server(end)
    return [python, "-m", "rivals.rq_fork", redis, str(slots)], environ


#: The measure, and what is held against it.
OURS = (
    Contender("bare", "bare fork", _bare, "the measure: what a zygote imports, without a sandbox"),
    Contender("trusted", "trusted", _ours("trusted")),
    Contender("untrusted", "untrusted", _ours("untrusted")),
)

OTHERS = (
    Contender("inline", "inline", _ours("inline"), "no process at all"),
    Contender("floor", "C fork-exit-wait", _floor, "the floor, one at a time"),
    Contender("smallest", "empty interpreter", _smallest, "fork of a Python, one at a time"),
    Contender("spawn", "spawn", _ours("spawn"), "a fresh interpreter for each job"),
    Contender(
        "asyncmq-spawn",
        "AsyncMQ run_handler, spawn",
        _rival("asyncmq", "asyncmq_handler", "spawn"),
        "as AsyncMQ comes",
    ),
    Contender(
        "asyncmq-fork",
        "AsyncMQ run_handler, fork",
        _rival("asyncmq", "asyncmq_handler", "fork"),
    ),
    Contender(
        "pebble", "pebble ProcessPool", _rival("pebble", "pebble_pool", "SLOTS"), "max_tasks=1"
    ),
    Contender(
        "pool-forkserver",
        "ProcessPoolExecutor, forkserver",
        _rival(environments.STDLIB, "process_pool", "forkserver", "SLOTS"),
        "max_tasks_per_child=1",
    ),
    Contender(
        "pool-spawn",
        "ProcessPoolExecutor, spawn",
        _rival(environments.STDLIB, "process_pool", "spawn", "SLOTS"),
        "max_tasks_per_child=1",
    ),
    Contender("rq", "RQ work horse", _rq, "fork; through Redis, which its fork needs"),
)


def default_slots() -> int:
    """As many as there are cores: more would measure the queue before them."""
    return len(os.sched_getaffinity(0))
