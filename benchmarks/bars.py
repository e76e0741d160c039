"""The bars: what the figures have to be for ``--check``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from figures import Figures, median, percentile

COST = {"trusted": (1.5, 1.25), "untrusted": (2.5, 2.0)}  # times the bare fork; and the aim
DISPATCH = 300e-6  # seconds to a parked sandbox, at the median
ASYNCMQ = 50.0  # times its rate
LATE = {"hang": (0.010, "idle"), "spin": (0.025, "all slots and cores busy")}  # seconds at p99
TREE_LATER = 0.050  # seconds after the kill until the whole tree is gone


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; ``value`` is None where it could not be measured, which misses it."""

    name: str
    value: float | None
    limit: float
    unit: str
    at_least: bool = False
    aim: float | None = None
    why: str = ""

    @property
    def met(self) -> bool:
        """Whether it is kept."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        word = "met   " if self.met else "MISSED"
        value = (
            f"not measured: {self.why}" if self.value is None else f"{self.value:.2f}{self.unit}"
        )
        bound = "at least" if self.at_least else "at most"
        aim = "" if self.aim is None else f", aim at {self.aim:g}"
        return f"{word} {self.name}: {value} ({bound} {self.limit:g}{self.unit}{aim})"


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def bars(every: Mapping[str, Figures]) -> Iterator[Bar]:
    """Every bar, over the figures by contender."""
    for key, (limit, aim) in COST.items():
        one = every[key]
        cost = median(one.costs)
        why = one.reason or every["bare"].reason
        yield Bar(f"cost of {key}", cost, limit, " times the bare fork", aim=aim, why=why)
    for key in COST:
        one = every[key]
        value = _scaled(median(one.alone), 1e6)
        name = f"dispatch to a parked sandbox, {key}, median"
        yield Bar(name, value, DISPATCH * 1e6, " us", why=one.reason)
    asyncmq = every["asyncmq-spawn"]
    ratio = median(asyncmq.behind)
    why = asyncmq.reason or every["trusted"].reason
    yield Bar("trusted over AsyncMQ as it comes", ratio, ASYNCMQ, " times", at_least=True, why=why)
    for key in COST:
        yield from _kills(key, every[key])


def _kills(key: str, one: Figures) -> Iterator[Bar]:
    for task, (limit, label) in LATE.items():
        value = _scaled(percentile(one.late.get(task, ()), 0.99), 1e3)
        name = f"kill lateness, {key}, {label}, p99"
        yield Bar(name, value, limit * 1e3, " ms", why=one.reason)
    # The outcome comes when the tree is gone, and does not say when the kill was: together they
    # have the time of both.
    gone = _scaled(percentile(one.late.get("tree", ()), 0.99), 1e3)
    limit = (LATE["hang"][0] + TREE_LATER) * 1e3
    yield Bar(f"kill and a tree of daemons gone, {key}, p99", gone, limit, " ms", why=one.reason)
    if key == "trusted":
        name = "processes left after the kill of a tree"
        yield Bar(name, one.left, 0, "", why=one.reason)
