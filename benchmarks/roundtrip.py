"""A whole job through RabbitMQ: ``python benchmarks/roundtrip.py [--jobs N] [--concurrency N]``.

Starts a private RabbitMQ node and a worker node as processes of their own; this process is the
producer. Quorum queue, confirms for job and outcome, a fresh process for each job. Prints jobs per
second with many in flight, and the round trip with one.
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
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import bench_tasks
from support.rabbitmq import PrivateNode

from fumehood.client import Client
from fumehood.common import UnknownQueue


async def many(client: Client, count: int, width: int) -> float:
    """Jobs per second with ``width`` in flight."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            assert await client.run(bench_tasks.add.call(number, 1), timeout=30.0) == number + 1

    started = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(width)))
    return count / (time.perf_counter() - started)


async def one_by_one(client: Client, count: int) -> list[float]:
    """Seconds of each round trip with one job in flight."""
    times: list[float] = []
    for number in range(count):
        started = time.perf_counter()
        assert await client.run(bench_tasks.add.call(number, 1), timeout=30.0) == number + 1
        times.append(time.perf_counter() - started)
    return times


async def ready(client: Client) -> None:
    """Wait until the worker has made its queue."""
    while True:
        try:
            await client.run(bench_tasks.add.call(0, 0), timeout=30.0)
            return
        except UnknownQueue:
            await asyncio.sleep(0.05)


async def measure(url: str, jobs: int, width: int) -> None:
    """Print every figure."""
    async with Client(url) as client:
        await asyncio.wait_for(ready(client), 60.0)
        await many(client, jobs // 10, width)
        print(f"{width} in flight: {await many(client, jobs, width):.0f} jobs/s")
        times = await one_by_one(client, jobs // 5)
        p99 = sorted(times)[int(len(times) * 0.99)]
        print(
            f"1 in flight: median {statistics.median(times) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms"
        )


def main(jobs: int, concurrency: int, width: int) -> None:
    """Start broker and worker, measure, end both."""
    with PrivateNode() as broker:
        command = [str(Path(sys.executable).parent / "fumehood"), "worker", "bench_tasks"]
        command += ["-c", str(concurrency), "--broker", broker.url, "--log-level", "warning"]
        worker = subprocess.Popen(command, cwd=HERE, env=dict(os.environ))
        try:
            asyncio.run(measure(broker.url, jobs, width))
        finally:
            worker.terminate()
            worker.wait(60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--in-flight", type=int, default=32)
    options = parser.parse_args()
    main(options.jobs, options.concurrency, options.in_flight)
