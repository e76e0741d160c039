"""Enqueue jobs and await what becomes of them: ``python -m app.producer`` in the folder above."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.settings import Settings
from app.tasks import add, count_words, crash, think
from fumehood.client import Client
from fumehood.common import JobCrashed, JobTimedOut

HERE = Path(__file__).resolve()


async def main() -> None:
    """Four jobs: two that succeed, one killed at its timeout, one that crashes."""
    async with Client(settings=Settings()) as client:
        total = await client.run(add.call(2, 3), timeout=5.0)
        print("2 + 3 =", total)

        handle = await client.enqueue(count_words.call(HERE))
        print(f"job {handle.id}:", await handle.result())

        try:
            await client.run(think.call(60.0), timeout=0.5)
        except JobTimedOut as error:
            print("timed out:", error.outcome.reason)

        try:
            await client.run(crash.call())
        except JobCrashed as error:
            print("crashed:", error.outcome.reason)

        handles = await client.enqueue_many([add.call(number, 1) for number in range(1000)])
        print("a thousand more:", sum([await handle.result() for handle in handles]))


if __name__ == "__main__":
    asyncio.run(main())
