"""What a sandbox costs, without a broker: ``python benchmarks/sandbox.py [--jobs N] [--slots N]``.

Prints jobs per second for a bare fork and for sandboxes, in turn and in one run, for only their
ratio means anything on another machine; the time from giving a job to a parked sandbox to the start
of its code; and how late kills come, idle and with every slot and core busy.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import bench_tasks

from fumehood.common import Status
from fumehood.worker import Sandbox

MODULES = ["bench_tasks"]
KILL_AFTER = 0.05  # seconds


def bare_fork(count: int) -> float:
    """Jobs per second of ``bare_fork.py``, in a process of its own."""
    command = [sys.executable, "-S", str(HERE / "bare_fork.py"), str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def throughput(slots: int, count: int) -> tuple[float, float, float]:
    """Jobs per second, and the medians of dispatch and of a whole job in seconds."""
    async with Sandbox(MODULES, slots=slots) as sandbox:
        dispatch: list[float] = []
        whole: list[float] = []
        numbers = iter(range(count))

        async def lane() -> None:
            for number in numbers:
                began = time.perf_counter()
                outcome = await sandbox.run(bench_tasks.add.call(number, 1), timeout=10.0)
                whole.append(time.perf_counter() - began)
                dispatch.append(outcome.usage.setup)
                assert outcome.value == number + 1, outcome

        await asyncio.gather(*(lane() for _ in range(slots)))
        started = time.perf_counter()
        numbers = iter(range(count))
        dispatch.clear()
        whole.clear()
        await asyncio.gather(*(lane() for _ in range(slots)))
        elapsed = time.perf_counter() - started
    return count / elapsed, statistics.median(dispatch), statistics.median(whole)


async def lateness(slots: int, count: int, *, busy: bool) -> list[float]:
    """Seconds from each deadline to the outcome: the kill, and the tree being gone."""
    call = bench_tasks.spin.call() if busy else bench_tasks.hang.call(60.0)
    late: list[float] = []
    async with Sandbox(MODULES, slots=slots) as sandbox:
        numbers = iter(range(count))

        async def lane() -> None:
            for _ in numbers:
                outcome = await sandbox.run(call, timeout=KILL_AFTER)
                assert outcome.status is Status.TIMED_OUT, outcome
                late.append(outcome.usage.wall - KILL_AFTER)

        await asyncio.gather(*(lane() for _ in range(slots)))
    return sorted(late)


def percentile(values: list[float], part: float) -> float:
    """The value below which ``part`` (0 to 1) of the sorted values lie."""
    return values[min(len(values) - 1, int(len(values) * part))]


async def main(jobs: int, slots: int) -> None:
    """Print every figure."""
    for width in sorted({1, slots, 2 * slots}):
        forks = bare_fork(jobs)
        print(f"bare fork of a small interpreter, one at a time {forks:8.0f} jobs/s")
        rate, dispatch, whole = await throughput(width, jobs)
        print(
            f"sandbox, {width} slots {rate:8.0f} jobs/s ({rate / forks:.2f} of the bare fork), "
            f"dispatch {dispatch * 1e6:.0f} us, whole job {whole * 1e3:.2f} ms (medians)"
        )
    for label, busy in (("idle", False), ("all slots and cores busy", True)):
        late = await lateness(slots, 200, busy=busy)
        p50, p99 = percentile(late, 0.5) * 1e3, percentile(late, 0.99) * 1e3
        print(f"kill to tree gone, {label}: {p50:.1f} ms late at the median, {p99:.1f} ms at p99")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 2)
    options = parser.parse_args()
    asyncio.run(main(options.jobs, options.slots))
