"""What ``sandbox.py`` and a runner say to each other: an order in words, an answer in JSON.

A runner is a process that runs one kind of job. It says ``{"ready": true}``, or ``unavailable``
and why, and then answers each line of its stdin with one line, until its stdin ends:

``run COUNT WIDTH PAUSE`` runs COUNT jobs, WIDTH at a time, each PAUSE seconds after the one before
it. The answer has ``seconds`` for all of them, and ``latency``: the seconds from each call to the
first instruction of its task, in no order; empty where that means nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: Runs so many jobs, so many at a time, with such a pause before each; their latencies in seconds.
Run = Callable[[int, int, float], list[float]]


class Desk:
    """Where a runner answers. What libraries print to stdout goes to stderr from here on."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def say(self, **facts: Any) -> None:
        """Answer with these facts."""
        print(json.dumps(facts), file=self._answers, flush=True)


def orders() -> Iterator[list[str]]:
    """The words of each order, until there are no more."""
    for line in sys.stdin:
        yield line.split()


def serve(run: Run, desk: Desk, **facts: Any) -> None:
    """Be ready, and run what is ordered. ``facts`` are said beside ``ready``."""
    desk.say(ready=True, **facts)
    for order in orders():
        count, width, pause = int(order[1]), int(order[2]), float(order[3])
        began = time.perf_counter()
        try:
            latency = run(count, width, pause)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is this runner's answer
            desk.say(failed=f"{type(exc).__name__}: {exc}")
            return
        desk.say(seconds=time.perf_counter() - began, latency=latency)


def in_lanes(once: Callable[[int], float]) -> Run:
    """For jobs that are waited for in a call: as many threads as there are to be jobs at a time.

    ``once`` runs the job of this number and returns its latency. A single job runs in the main
    thread, so that it is not charged for others.
    """

    def run(count: int, width: int, pause: float) -> list[float]:
        numbers = iter(range(count))
        found: list[float] = []

        def lane() -> None:
            for number in numbers:
                if pause:
                    time.sleep(pause)
                found.append(once(number))

        if width == 1:
            lane()
            return found
        with ThreadPoolExecutor(width) as lanes:
            for ending in [lanes.submit(lane) for _ in range(width)]:
                ending.result()
        return found

    return run
