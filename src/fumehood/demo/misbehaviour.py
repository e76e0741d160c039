"""Six jobs of which five misbehave, one after the other on one node, and what became of each."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fumehood.client import Client
from fumehood.common.outcome import Outcome, Status
from fumehood.common.task import Call
from fumehood.demo import tasks

_DEAD_WITHIN = 1.0  # seconds that a killed process may take to be seen as dead


@dataclass(frozen=True, slots=True)
class Case:
    """A job, and the verdict that it deserves."""

    what: str
    call: Call[Any]
    timeout: float  # seconds
    expected: Status


CASES = (
    Case("adds two numbers", tasks.fine.call(2, 3), 5.0, Status.SUCCEEDED),
    Case("raises", tasks.raises.call(), 5.0, Status.FAILED),
    Case("sleeps past its timeout", tasks.oversleeps.call(60.0), 0.5, Status.TIMED_OUT),
    Case("segfaults", tasks.segfaults.call(), 5.0, Status.CRASHED),
    Case("calls os._exit(0)", tasks.exits.call(), 5.0, Status.EXITED),
    Case("ignores SIGTERM, leaves a daemon", tasks.clings.call(600.0), 1.0, Status.TIMED_OUT),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one case. Times are seconds."""

    what: str
    expected: str
    status: str
    blame: str
    reason: str
    timeout: float
    took: float  # of the task's code, to the end of its last process
    cleaned_up: str
    grandchild: int | None = None  # process id
    grandchild_dead: bool | None = None

    @property
    def as_expected(self) -> bool:
        """Whether it ended as it had to, with nothing left."""
        return self.status == self.expected and self.grandchild_dead is not False


async def run_cases(client: Client) -> list[Finding]:
    """Run every case and look after it."""
    findings: list[Finding] = []
    for case in CASES:
        handle = await client.enqueue(case.call, timeout=case.timeout)
        findings.append(await _examine(case, await handle.outcome()))
    return findings


async def _examine(case: Case, outcome: Outcome) -> Finding:
    grandchild = _grandchild(outcome)
    dead = None if grandchild is None else await _is_dead(grandchild)
    reason = outcome.reason
    if outcome.error is not None:
        reason = f"{outcome.error.type}: {outcome.error.message}"
    return Finding(
        what=case.what,
        expected=case.expected.value,
        status=outcome.status.value,
        blame=outcome.blame.value,
        reason=reason,
        timeout=case.timeout,
        took=round(outcome.usage.wall, 4),
        cleaned_up=_cleaned_up(outcome, grandchild, dead),
        grandchild=grandchild,
        grandchild_dead=dead,
    )


def _cleaned_up(outcome: Outcome, grandchild: int | None, dead: bool | None) -> str:
    if grandchild is not None:
        return f"process {grandchild} {'is dead' if dead else 'IS ALIVE'}"
    if outcome.leaked_processes:
        return f"{outcome.leaked_processes} processes"
    return "its process" if outcome.status is Status.TIMED_OUT else "nothing was left"


def _grandchild(outcome: Outcome) -> int | None:
    """The process id that the grandchild itself has printed: it was alive to do so."""
    found = re.search(rf"{tasks.GRANDCHILD} (\d+)", outcome.stdout.decode(errors="replace"))
    return int(found[1]) if found else None


async def _is_dead(pid: int) -> bool:
    end = time.monotonic() + _DEAD_WITHIN
    while _state(pid) not in ("", "Z", "X"):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


def _state(pid: int) -> str:
    """One letter, as ``ps`` shows it; empty when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]
