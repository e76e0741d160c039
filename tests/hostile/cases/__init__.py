"""The tables: each case with what must become of it."""

from __future__ import annotations

from hostile.case import Case
from hostile.cases import (
    disk,
    exits,
    kernel,
    memory,
    network,
    processes,
    results,
    secrecy,
    times,
    wire,
)

KINDS: dict[str, list[Case]] = {
    "times": times.CASES,
    "processes": processes.CASES,
    "memory": memory.CASES,
    "disk": disk.CASES,
    "exits": exits.CASES,
    "results": results.CASES,
    "secrecy": secrecy.CASES,
    "network": network.CASES,
    "kernel": kernel.CASES,
    "wire": wire.CASES,
}
