"""A process with a sandbox manager that runs one job for ever: to be killed.

Arguments: what to disable, a file for the ids of the job's grandchildren, their number.
"""

from __future__ import annotations

import asyncio
import sys

from support import sandbox_tasks as tasks
from support.aio import until
from support.sandboxes import make_sandbox


async def main() -> None:
    disable = tuple(name for name in sys.argv[1].split(",") if name)
    async with make_sandbox(disable, slots=2) as sandbox:
        jobs = [
            sandbox.run(tasks.leak_and_hang.call(int(sys.argv[3]), sys.argv[2]), 300),
            sandbox.run(tasks.sleep.call(300), 300),
        ]
        running = asyncio.gather(*jobs)
        await until(lambda: sandbox.manager.busy == 2)
        print(*sandbox.manager.zygote_pids, flush=True)
        await running


if __name__ == "__main__":
    asyncio.run(main())
