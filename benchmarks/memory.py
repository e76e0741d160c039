"""Whether a node's memory grows with the jobs it has run: ``python benchmarks/memory.py [N]``.

Runs N small jobs (50,000 if not said), a tenth of which fail, through a node in this process, and
prints its resident memory as it goes. After N jobs it may be 3 MiB above what it was after N / 10;
else the exit code is 1. The client's share is in it: handles are dropped as outcomes arrive.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support import jobs

from fumehood.broker.memory import MemoryBroker
from fumehood.broker.options import BrokerOptions
from fumehood.client import Client
from fumehood.common import JobFailed, Settings
from fumehood.worker import Worker

BOUND = 3.0  # MiB
_WIDTH = 32  # jobs under way at a time
_PAGE = os.sysconf("SC_PAGE_SIZE")


def rss() -> float:
    """Resident memory of this process in MiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 2**20


async def run_jobs(client: Client, first: int, last: int) -> None:
    """Run the jobs of these numbers; every tenth fails."""
    numbers = iter(range(first, last))

    async def lane() -> None:
        for number in numbers:
            if number % 10:
                assert await client.run(jobs.fine.call(number)) == number * 2
            else:
                try:
                    await client.run(jobs.fail.call("on purpose"))
                except JobFailed:
                    continue
                raise AssertionError("a job that must fail did not")

    await asyncio.gather(*(lane() for _ in range(_WIDTH)))


async def series(
    counts: Sequence[int], report: Callable[[int, float, float], None] = lambda *_: None
) -> list[float]:
    """Resident memory in MiB after each of these numbers of jobs, counted from the start."""
    settings = Settings()
    found: list[float] = []
    broker = MemoryBroker("memory-benchmark", BrokerOptions())
    worker = Worker(broker=broker, modules=["support.jobs"], concurrency=4, settings=settings)
    await worker.start()
    try:
        async with (
            MemoryBroker("memory-benchmark", BrokerOptions()) as producer,
            Client(broker=producer, settings=settings) as client,
        ):
            began, done = time.monotonic(), 0
            for count in counts:
                await run_jobs(client, done, count)
                done = count
                found.append(rss())
                report(count, found[-1], time.monotonic() - began)
    finally:
        await worker.stop()
    return found


def show(count: int, size: float, seconds: float) -> None:
    print(f"{count:>8} jobs {size:8.2f} MiB {seconds:8.1f} s", flush=True)


def main() -> int:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    sizes = asyncio.run(series([total * part // 10 for part in range(1, 11)], show))
    growth = sizes[-1] - sizes[0]
    print(f"grown by {growth:.2f} MiB from {total // 10} to {total} jobs, {BOUND:g} MiB allowed")
    return growth > BOUND


if __name__ == "__main__":
    sys.exit(main())
