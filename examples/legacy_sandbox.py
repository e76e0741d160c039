"""A function that cannot be trusted with the process it is called from, in a sandbox: no broker.

Then the same task as jobs, with a client and a node over the in-memory broker.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fumehood.client import Client
from fumehood.common import JobTimedOut, load_settings, task
from fumehood.worker import Worker, run_handler

settings = load_settings(broker_url="memory://")


@task(queue="legacy", progress=False)
def old_heavy(data: list[float]) -> float:
    """Block for as long as the numbers add up to, then return their sum."""
    time.sleep(sum(data))
    return sum(data)


some_task = old_heavy


def in_place(data: list[float]) -> Any:
    """From synchronous code: in a sandbox unless the settings say otherwise."""
    if settings.sandbox_enabled:
        result = run_handler(old_heavy.task_id, [data], {}, settings.sandbox_default_timeout)
    else:
        result = old_heavy(data)
    return result


async def as_jobs(data: list[float]) -> None:
    """From asynchronous code: enqueued, with a timeout for this job alone."""
    worker = Worker(modules=["legacy_sandbox"], queues=["legacy"], settings=settings)
    await worker.start()
    async with Client(settings=settings) as client:
        handle = await some_task.enqueue(client, data, timeout=5.0)
        print("as a job:", await handle.result())
        handle = await some_task.enqueue(client, [60.0], timeout=0.2)
        try:
            await handle.result()
        except JobTimedOut as error:
            print("too slow:", error.outcome.reason)
    await worker.stop()


if __name__ == "__main__":
    # A sandbox imports the module that declares the task; this file was started as a script.
    from legacy_sandbox import as_jobs, in_place

    print("in place:", in_place([0.1, 0.2]))
    asyncio.run(as_jobs([0.1, 0.2]))
