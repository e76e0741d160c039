"""What was measured, contender by contender, and the table that shows it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_FEW = 200  # values below which a 99th percentile says nothing


def percentile(values: Iterable[float], part: float) -> float | None:
    """The value below which ``part`` (0 to 1) of them lie; None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else None


def median(values: Sequence[float]) -> float | None:
    """Their median; None of none."""
    return statistics.median(values) if values else None


@dataclass(slots=True)
class Figures:
    """One contender's. Rates are jobs per second, all else is seconds, unless said otherwise."""

    title: str
    note: str = ""
    version: str = ""
    reason: str = ""  # why it was not measured, or not to its end
    rates: list[float] = field(default_factory=list[float])  # one for each round
    costs: list[float] = field(default_factory=list[float])  # times the bare fork, for each round
    behind: list[float] = field(default_factory=list[float])  # trusted's rate by its, for each
    cpu: list[float] = field(default_factory=list[float])  # CPU seconds per job, for each round
    busy: list[float] = field(default_factory=list[float])  # latencies with all slots in use
    alone: list[float] = field(default_factory=list[float])  # latencies, one job at a time
    late: dict[str, list[float]] = field(default_factory=dict[str, list[float]])  # by task killed
    left: int | None = None  # daemons of killed jobs that were there at the outcome

    @property
    def alone_p99(self) -> float | None:
        """The 99th percentile of latencies, one job at a time, where there are enough of them."""
        return percentile(self.alone, 0.99) if len(self.alone) >= _FEW else None

    def to_json(self) -> dict[str, Any]:
        """All of it that is worth keeping."""
        return {
            "title": self.title,
            "version": self.version,
            "unavailable": self.reason or None,
            "jobs_per_second": median(self.rates),
            "jobs_per_second_by_round": self.rates,
            "times_the_bare_fork": median(self.costs),
            "times_the_bare_fork_by_round": self.costs,
            "trusted_is_faster_by": median(self.behind),
            "cpu_seconds_per_job": median(self.cpu),
            "latency_alone": {"median": median(self.alone), "p99": self.alone_p99},
            "latency_busy": {"median": median(self.busy), "p99": percentile(self.busy, 0.99)},
            "killed_late": {
                task: {"median": median(late), "p99": percentile(late, 0.99), "max": max(late)}
                for task, late in self.late.items()
            },
            "left_after_kill": self.left,
        }


_HEADINGS = ("", "jobs/s", "x bare", "trusted x", "CPU ms", "alone us", "p99 us", "busy us", "")
_KILLS = ("hang", "kill, idle"), ("spin", "kill, busy"), ("tree", "kill, tree")


def _number(value: float | None, factor: float = 1.0, digits: int = 0) -> str:
    return "-" if value is None else f"{value * factor:,.{digits}f}"


def _row(one: Figures) -> tuple[str, ...]:
    if not one.rates:
        return (one.title, *[""] * 7, f"not available: {one.reason}")
    rate = median(one.rates)
    return (
        one.title,
        _number(rate, digits=0 if rate is None or rate >= 100 else 1),
        _number(median(one.costs), digits=2),
        _number(median(one.behind), digits=1),
        _number(median(one.cpu), 1e3, 2),
        _number(median(one.alone), 1e6),
        _number(one.alone_p99, 1e6),
        _number(median(one.busy), 1e6),
        "; ".join(filter(None, (one.note, one.reason and f"then: {one.reason}"))),
    )


def table(every: Iterable[Figures]) -> str:
    """Throughput and latency, a line for each contender."""
    rows = [_HEADINGS, *map(_row, every)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS) - 1)]
    lines: list[str] = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [row[column].rjust(widths[column]) for column in range(1, len(widths))]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def kill_table(every: Iterable[Figures]) -> str:
    """How late kills came, a line for each profile and kind of job."""
    lines: list[str] = []
    for one in every:
        for task, label in _KILLS:
            late = one.late.get(task)
            if not late:
                lines.append(f"{one.title:<10} {label:<11} not measured: {one.reason}")
                continue
            middle, high = percentile(late, 0.5), percentile(late, 0.99)
            text = f"{_number(middle, 1e3, 1)} ms late at the median, {_number(high, 1e3, 1)} ms at"
            text += f" p99, {_number(max(late), 1e3, 1)} ms at most, of {len(late)}"
            if task == "tree" and one.left is not None:
                text += f"; {one.left} processes left"
            lines.append(f"{one.title:<10} {label:<11} {text}")
    return "\n".join(lines)
