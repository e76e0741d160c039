"""Sandboxes for tests, with a manager in a loop of its own so that tests stay plain functions."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

from fumehood.common import Outcome
from fumehood.common.settings import Settings, load_settings
from fumehood.common.task import Call
from fumehood.worker import Sandbox
from fumehood.worker.sandbox.killer import children_of

TASKS = "support.sandbox_tasks"
T = TypeVar("T")

#: What is tested in each way: with cgroups, and with the next best thing.
MODES = [pytest.param((), id="cgroup"), pytest.param(("cgroup",), id="no-cgroup")]
WAYS = [
    pytest.param(((), "fork"), id="cgroup"),
    pytest.param((("cgroup",), "fork"), id="no-cgroup"),
    pytest.param(((), "spawn"), id="spawn"),
]


def make_settings(disable: tuple[str, ...] = (), **more: Any) -> Settings:
    """Settings that no environment has a say in."""
    return load_settings(sandbox_disable=disable, **more)


def make_sandbox(
    disable: tuple[str, ...] = (), slots: int = 1, modules: tuple[str, ...] = (TASKS,), **more: Any
) -> Sandbox:
    """A sandbox that is not started yet."""
    return Sandbox(modules, slots, settings=make_settings(disable, **more))


class Bench:
    """A started sandbox in a thread of its own."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait(self.sandbox.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.wait(self.sandbox.stop())
        self.wait(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait(self, coroutine: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
        """The coroutine's value."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def run(self, call: Call[Any], timeout: float = 20.0, **more: Any) -> Outcome:
        """An outcome."""
        return self.wait(self.sandbox.run(call, timeout, **more))


def is_alive(pid: int) -> bool:
    """Whether a process is there, and more than a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def pids_in(file: Path) -> list[int]:
    """The process ids that a task wrote down."""
    return [int(pid) for pid in file.read_text().split()]


def wait_for(
    condition: Callable[[], object], what: str = "the condition", timeout: float = 20.0
) -> None:
    """Wait until ``condition()`` is true; fail the test after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {timeout:g} s")
        time.sleep(0.005)


def cgroups_of(pid: int) -> list[Path]:
    """The cgroup directories that the manager in process ``pid`` has made."""
    return [path for path in Path("/sys/fs/cgroup").rglob(f"fumehood-{pid}-*") if path.is_dir()]


def count_fds() -> int:
    """How many descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def newcomers(known: set[int]) -> set[int]:
    """Every process below this one but for those below its ``known`` children.

    What the whole test run shares, such as a broker, comes and goes by itself.
    """
    new = children_of(os.getpid()) - known
    return {pid for child in new for pid in (child, *descendants(child)) if is_alive(pid)}


def descendants(pid: int) -> set[int]:
    """Every process below ``pid``, zombies left out."""
    children: dict[int, set[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in ("Z", "X"):
            children.setdefault(int(fields[1]), set()).add(int(stat.parent.name))
    found: set[int] = set()
    edge = [pid]
    while edge:
        below = children.get(edge.pop(), set()) - found
        found |= below
        edge += below
    return found
