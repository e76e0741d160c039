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
import threading
import time
from collections.abc import Callable, Iterator
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
    """The words of each order, until there are no more.

    Not from ``sys.stdin``: a thread of a rival may fork while this one waits, and the child would
    inherit the stream's lock as held, and die of it as it closes the stream.
    """
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode().split()


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
    thread, so that it is not charged for others. Plain threads and no executor's: whatever forks in
    one of those fails as it exits, for it tries to join itself.
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
        else:
            _in_threads(lane, width)
        return found

    return run


def _in_threads(lane: Callable[[], None], width: int) -> None:
    """Call it in as many threads; raises what one of them has raised."""
    faults: list[Exception] = []

    def guarded() -> None:
        try:
            lane()
        except Exception as exc:  # noqa: BLE001 - raised below, in the thread that asked
            faults.append(exc)

    threads = [threading.Thread(target=guarded) for _ in range(width)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
