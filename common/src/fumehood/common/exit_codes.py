"""Exit codes of ``fumehood``: one table for every command."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILURE: Final = 1
USAGE: Final = 2
BROKER: Final = 3
JOB: Final = 4
WAIT: Final = 5
DEGRADED: Final = 6
ABSENT: Final = 7
INTERRUPTED: Final = 130  # 128 and the number of SIGINT, as shells have it

MEANINGS: Final = {
    OK: "done",
    FAILURE: "something failed that should not have",
    USAGE: "wrong usage or settings, or a module that cannot be imported",
    BROKER: "the broker cannot be reached, or refused the job",
    JOB: "the job did not succeed",
    WAIT: "no outcome within the time to wait",
    DEGRADED: "a guarantee that is promised is degraded on this host",
    ABSENT: "a guarantee that is promised is absent on this host",
    INTERRUPTED: "interrupted",
}


def describe(*codes: int) -> str:
    """A line for the help of a command that exits with these codes."""
    return f"Exit codes: {'; '.join(f'{code} {MEANINGS[code]}' for code in codes)}."
