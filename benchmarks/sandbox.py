"""What a sandbox costs, beside its rivals: ``python benchmarks/sandbox.py [--quick] [--check]``.

One run prints throughput, dispatch latency and kill lateness of Fumehood's sandboxes, beside a bare
fork, which is the measure, and beside other ways to give each job a process. Ratios are taken
between things that ran in turn within a second or two, for nothing else holds on a machine that has
other work; ``README.md`` in this folder says how, and how to read it. With ``--check`` the exit
code is 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bars
import contenders
from contenders import Contender
from figures import Figures, kill_table, table
from rivals.environments import Unavailable
from runner import Runner

_PAUSE = 0.01  # seconds between jobs one at a time: the next sandbox is parked by then
_ANSWER_MAX = 40.0  # seconds for one answer
_START_MAX = 30.0  # seconds for a runner to be ready
_ROUND_SECONDS = 0.8  # that a round of a slow contender should take; the fast ones have ``jobs``
_WARM_JOBS = 100
_ALONE_SECONDS = 1.5  # that jobs one at a time should take, of contenders that take a pause
_ALONE_MIN, _WIDTH_ROUNDS = 5, 2  # jobs at the least, alone; in a round, for each slot
_KILLS = ("hang", "spin", "tree")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. The whole run ends within ``seconds``, whatever hangs."""

    slots: int
    rounds: int
    jobs: int  # a round at the most
    alone: int  # jobs one at a time at the most
    kills: int
    trees: int
    seconds: float


class Entry:
    """One contender in this run: its runner, as long as it works, and its figures."""

    def __init__(self, contender: Contender, plan: Plan, end: float) -> None:
        self.contender = contender
        self.figures = Figures(contender.title, contender.note)
        self._plan, self._end = plan, end
        self._runner: Runner | None = None
        self._jobs = 0

    def start(self) -> None:
        """Make what it needs, start it, and find out how many jobs a round may have."""
        progress(f"starting {self.contender.title}")
        try:
            self._left()
            command, environ = self.contender.prepare(self._plan.slots, self._end)
            key = self.contender.key
            self._runner = Runner(key, command, environ, min(_START_MAX, self._left()))
        except Unavailable as exc:
            self.figures.reason = str(exc)
            return
        self.figures.version = str(self._runner.facts.get("version", ""))
        least = _WIDTH_ROUNDS * self._plan.slots
        self._jobs = least
        rate = self._run()
        if rate is not None and rate > _WARM_JOBS:
            self._jobs = _WARM_JOBS
            rate = self._run()
        self._jobs = min(self._plan.jobs, max(least, int((rate or 0) * _ROUND_SECONDS)))
        self.figures.rates, self.figures.cpu, self.figures.busy = [], [], []

    def stop(self) -> None:
        """End its runner."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def round(self) -> float | None:
        """Run one round; jobs per second, or None when it is out."""
        return self._run()

    def _run(self) -> float | None:
        answer, cpu = self._ask(f"run {self._jobs} {self._plan.slots} 0")
        if answer is None:
            return None
        rate: float = self._jobs / answer["seconds"]
        self.figures.rates.append(rate)
        self.figures.busy += answer["latency"]
        if cpu is not None:
            self.figures.cpu.append(cpu / self._jobs)
        return rate

    def run_alone(self) -> None:
        """Measure latency, one job at a time with a pause before each."""
        answer, _ = self._ask(f"run {_ALONE_MIN} 1 {_PAUSE}")
        if answer is None:
            return
        each = answer["seconds"] / _ALONE_MIN
        jobs = max(_ALONE_MIN, min(self._plan.alone, int(_ALONE_SECONDS / each)))
        answer, _ = self._ask(f"run {jobs} 1 {_PAUSE}")
        if answer is not None:
            self.figures.alone = answer["latency"]

    def run_kills(self) -> None:
        """Measure how late kills come, of jobs that sleep, spin, and leave daemons behind."""
        for task in _KILLS:
            count = self._plan.trees if task == "tree" else self._plan.kills
            answer, _ = self._ask(f"kill {count} {self._plan.slots} {task}")
            if answer is None:
                return
            self.figures.late[task] = answer["late"]
            if task == "tree":
                self.figures.left = answer["left"]

    def _ask(self, order: str) -> tuple[dict[str, Any] | None, float | None]:
        if self._runner is None:
            return None, None
        try:
            return self._runner.ask(order, min(_ANSWER_MAX, self._left()))
        except Unavailable as exc:
            self.figures.reason = str(exc)
            self.stop()
            return None, None

    def _left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise Unavailable(f"the {self._plan.seconds:g} s of this run were over")
        return left


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def against(base: Sequence[float | None], rate: float | None) -> list[float]:
    """How many times the mean time of ``base`` a job takes; nothing where one is not known."""
    times = [1 / each for each in base if each]
    return [1 / rate / statistics.fmean(times)] if times and rate else []


def compare_ours(entries: dict[str, Entry], plan: Plan) -> None:
    """Rounds of bare, trusted, bare, untrusted, and so on: each against the two around it."""
    bare = entries["bare"]
    before = bare.round()
    for number in range(plan.rounds):
        progress(f"round {number + 1} of {plan.rounds}")
        for key in ("trusted", "untrusted"):
            rate = entries[key].round()
            after = bare.round()
            entries[key].figures.costs += against([before, after], rate)
            before = after


def compare_others(entries: dict[str, Entry], plan: Plan) -> None:
    """Rounds of bare, trusted and all the others."""
    others = [entries[each.key] for each in contenders.OTHERS]
    for number in range(plan.rounds):
        progress(f"round {number + 1} of {plan.rounds} with all the others")
        bare, trusted = entries["bare"].round(), entries["trusted"].round()
        for other in others:
            rate = other.round()
            other.figures.costs += against([bare], rate)
            other.figures.behind += [trusted / rate] if trusted and rate else []


def measure(plan: Plan) -> dict[str, Figures]:
    """Everything. Ours first, while no rival's threads are about."""
    end = time.monotonic() + plan.seconds
    line_up = (*contenders.OURS, *contenders.OTHERS)
    entries = {each.key: Entry(each, plan, end) for each in line_up}
    try:
        for each in contenders.OURS:
            entries[each.key].start()
        compare_ours(entries, plan)
        for each in contenders.OURS:
            progress(f"latency of {each.title}")
            entries[each.key].run_alone()
        for key in ("trusted", "untrusted"):
            progress(f"kills of {key}")
            entries[key].run_kills()
        for each in contenders.OTHERS:
            entries[each.key].start()
        compare_others(entries, plan)
        for each in contenders.OTHERS:
            entries[each.key].run_alone()
    finally:
        for entry in entries.values():
            entry.stop()
    return {key: entry.figures for key, entry in entries.items()}


def machine(plan: Plan) -> dict[str, Any]:
    """Where and how it was measured."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": contenders.default_slots(),
        "slots": plan.slots,
        "rounds": plan.rounds,
        "load": os.getloadavg()[0],
    }


def show(where: dict[str, Any], every: dict[str, Figures], found: Sequence[bars.Bar]) -> None:
    """Print the tables."""
    print("\n" + ", ".join(f"{name} {value}" for name, value in where.items()) + "\n")
    print(table(every.values()) + "\n")
    print(kill_table([every["trusted"], every["untrusted"]]) + "\n")
    for bar in found:
        print(bar)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and with ``--check`` judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=contenders.default_slots())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=600, help="jobs in a round")
    parser.add_argument("--quick", action="store_true", help="about a third of everything")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    options = parser.parse_args(arguments)
    few = options.quick
    plan = Plan(
        slots=options.slots,
        rounds=min(options.rounds, 3) if few else options.rounds,
        jobs=options.jobs // 3 if few else options.jobs,
        alone=100 if few else 200,
        kills=60 if few else 200,
        trees=10 if few else 50,
        seconds=120.0 if few else 320.0,
    )
    where = machine(plan)
    every = measure(plan)
    found = list(bars.bars(every))
    if options.json:
        figures = {key: one.to_json() for key, one in every.items()}
        judged = [{**asdict(bar), "met": bar.met} for bar in found]
        print(json.dumps({"machine": where, "contenders": figures, "bars": judged}, indent=2))
    else:
        show(where, every, found)
    missed = [bar.name for bar in found if not bar.met]
    if options.check and missed:
        progress(f"{len(missed)} bars missed: {'; '.join(missed)}")
    return int(options.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
