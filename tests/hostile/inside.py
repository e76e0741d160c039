"""Where the harness looks inside a manager; the one place that knows its private names."""

from __future__ import annotations

import os

from fumehood.worker.sandbox.manager import SandboxManager
from fumehood.worker.sandbox.process import SandboxProcess
from fumehood.worker.sandbox.seat import Seat


def waiting(manager: SandboxManager) -> list[SandboxProcess]:
    """Sandboxes that are parked for the next jobs."""
    return list(manager._parking._parked)


def coming(manager: SandboxManager) -> list[SandboxProcess]:
    """Sandboxes that are being forked."""
    return list(manager._parking._forking)


def running(manager: SandboxManager) -> list[SandboxProcess]:
    """Sandboxes that have a job."""
    return list(manager._running)


def in_peace(manager: SandboxManager) -> bool:
    """Whether no job runs, no seat is being cleaned, and the next sandbox waits."""
    busy = coming(manager) or running(manager) or manager.seats._cleaning
    return bool(waiting(manager)) and not busy


def pids(manager: SandboxManager) -> set[int]:
    """Processes that belong to the sandboxes there are."""
    boxes = [*waiting(manager), *coming(manager), *running(manager)]
    return {box.ending.pid for box in boxes}


def seat_of(manager: SandboxManager, job_id: str) -> int | None:
    """The number of the seat in which a job runs now."""
    for box in running(manager):
        if box.job is not None and box.job.job_id == job_id:
            return box.seat.number
    return None


def free_seats(manager: SandboxManager) -> list[Seat]:
    """Seats that nobody sits in; the last one is taken next."""
    return manager.seats._free


def seat_descriptors(manager: SandboxManager) -> int:
    """How many descriptors the zygotes have for the seats that they know."""
    boxes = [*waiting(manager), *coming(manager), *running(manager)]
    each = len(boxes[0].seat.fds()) if boxes else 0
    return each * sum(len(zygote._seats) for zygote in manager._keeper._zygotes)


def seat_count(manager: SandboxManager) -> int:
    """How many seats there are, taken and free."""
    return len(free_seats(manager)) + len(pids(manager))


def own_uid(uid: int) -> bool:
    """Whether sandboxes have a user of their own, and so all of its processes are theirs."""
    return uid not in (0, os.getuid())
