"""What sandboxes promise, by name, and what is found of it on a host.

Names are part of the interface: outcomes, the setting ``untrusted_requires`` and the command
``fumehood doctor`` all use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from fumehood.common.errors import ConfigurationError
from fumehood.common.task import Profile


class Level(StrEnum):
    """How far a guarantee holds on this host."""

    ENFORCED = "enforced"  # by something that a job cannot get around, as far as is known
    DEGRADED = "degraded"  # by something with a known way around it
    ABSENT = "absent"  # by nothing, or it could not be proven


#: Each guarantee in one sentence, in the order in which they are reported.
DESCRIPTIONS: dict[str, str] = {
    "kill": "At its deadline a job is killed, with everything that it has started.",
    "memory": "No job holds more memory than its limit, memory in files and memfds included.",
    "oom-attribution": "A job that ran out of memory is told apart, with its limit and its peak.",
    "processes": "No job has more processes and threads than its limit.",
    "cpu": "No job uses more CPU time than its limit, all its processes together.",
    "exit-attribution": "How a job's process ended is known, whatever the job says of it.",
    "stack": "A job killed at its deadline leaves the Python stack that it was at.",
    "private-memory": "No job reads memory or environment of the node, a zygote or another job.",
    "no-signals": "No signal of a job reaches the node, a zygote or another job.",
    "no-tcp": "No job makes or takes a TCP connection.",
    "no-udp": "No job sends a datagram.",
    "no-unix": "No job reaches a Unix socket of the host, by path or by abstract name.",
    "read-only-code": "No job changes the code that it, the node or another job runs.",
    "private-tmp": "Temporary files are a job's own, bounded, and gone with it.",
    "hidden-files": "Files of the host are out of sight, readable or not, but for code.",
    "no-capabilities": "No job holds a capability, or can gain one.",
    "syscall-filter": "Rarely used parts of the kernel answer no job.",
}

_TRUSTED = (
    "kill", "memory", "oom-attribution", "processes", "cpu", "exit-attribution", "stack",
)  # fmt: skip
#: What each profile promises; the rest is reported, and nothing is held against a host for it.
PROMISED: dict[Profile, tuple[str, ...]] = {"trusted": _TRUSTED, "untrusted": tuple(DESCRIPTIONS)}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one guarantee. Texts are for people, one line each; empty for nothing."""

    guarantee: str
    level: Level
    by: str  # what enforces it, as far as anything does
    bypass: str  # how a job gets around that
    remedy: str  # what to change on this host
    evidence: str  # what was tried, and what came of it

    def __str__(self) -> str:
        if self.level is Level.ABSENT:
            return f"{self.guarantee} is absent ({self.evidence})"
        around = f" (bypass: {self.bypass})" if self.bypass else ""
        return f"{self.guarantee} is {self.level} by {self.by}{around}"


@dataclass(frozen=True, slots=True)
class Examination:
    """The findings on one profile, one for each guarantee, and the seconds that they took."""

    profile: Profile
    findings: tuple[Finding, ...]
    seconds: float = 0.0

    @property
    def enforced(self) -> tuple[str, ...]:
        """The guarantees in force, promised or not, as outcomes name them."""
        return tuple(each.guarantee for each in self.findings if each.level is Level.ENFORCED)

    def lacks(self, required: Sequence[str]) -> list[Finding]:
        """What is required and not enforced. Raises ``ConfigurationError`` for unknown names."""
        unknown = sorted(set(required) - DESCRIPTIONS.keys())
        if unknown:
            raise ConfigurationError(
                f"no guarantee is named {', '.join(unknown)}: there are {', '.join(DESCRIPTIONS)}"
            )
        return [
            each
            for each in self.findings
            if each.guarantee in required and each.level is not Level.ENFORCED
        ]

    @property
    def worst(self) -> Level:
        """The lowest level of what the profile promises."""
        levels = {each.level for each in self.lacks(PROMISED[self.profile])}
        order = (Level.ABSENT, Level.DEGRADED)
        return next((level for level in order if level in levels), Level.ENFORCED)

    def to_json(self) -> dict[str, Any]:
        """As plain data: ``fumehood doctor --json`` prints it."""
        promised = PROMISED[self.profile]
        return {
            "profile": self.profile,
            "worst": self.worst,
            "seconds": round(self.seconds, 3),
            "findings": [
                {
                    **asdict(each),
                    "description": DESCRIPTIONS[each.guarantee],
                    "promised": each.guarantee in promised,
                }
                for each in self.findings
            ],
        }
