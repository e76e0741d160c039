"""What a case must leave as it was: the manager's loop, its zygote, and the process table."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

TICK = 0.005  # seconds


class Ticker:
    """Looks from within a loop how late the loop is."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due = 0.0
        self._worst = 0.0
        loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._due = time.monotonic() + TICK
        self._handle = self._loop.call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._worst = max(self._worst, time.monotonic() - self._due)
        self._begin()

    def _end(self) -> None:
        self._handle.cancel()

    def take(self) -> float:
        """The longest delay since the last call, in seconds; one that lasts counts as well."""
        worst = max(self._worst, time.monotonic() - self._due)
        self._worst = 0.0
        return worst

    def stop(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._end)


def marked(mark: str) -> dict[int, str]:
    """Processes whose first environment holds ``mark``, with their names; zombies hold nothing."""
    needle = os.fsencode(mark)
    found: dict[int, str] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if needle in Path(entry.path, "environ").read_bytes():
                found[int(entry.name)] = Path(entry.path, "comm").read_text().strip()
    return found


def of_user(uid: int) -> set[int]:
    """Processes that run as ``uid``."""
    found: set[int] = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            lines = Path(entry.path, "status").read_text().splitlines()
            facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if not facts["State"].startswith(("Z", "X")) and facts["Uid"].split()[1] == str(uid):
                found.add(int(entry.name))
    return found


def descriptors_of(pid: int) -> Counter[str]:
    """What a process has open, by kind. Raises ``OSError`` when it is gone."""
    kinds: Counter[str] = Counter()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kinds[str(fd.readlink()).split(":")[0].split(" ")[0]] += 1
    return kinds


def await_rest(look: Callable[[], Counter[str]]) -> Counter[str]:
    """What is open once that changes no more: what a fork took is closed a moment later."""
    seen = look()
    for _ in range(100):
        time.sleep(0.01)
        last, seen = seen, look()
        if last == seen:
            break
    return seen


def name_of(pid: int) -> str:
    """What a process calls itself; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def threads_of(pid: int) -> int:
    """How many threads a process has. Raises ``OSError`` when it is gone."""
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
