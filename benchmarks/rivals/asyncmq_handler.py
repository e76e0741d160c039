"""AsyncMQ's ``run_handler``: ``python -m rivals.asyncmq_handler fork|spawn``.

Its worker calls it in threads, and so does this. "spawn" is what AsyncMQ comes with.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from importlib.metadata import version

from rivals import orders

_TIMEOUT = 30.0  # seconds a job may take


def main(context: str) -> None:
    desk = orders.Desk()
    asyncmq = import_module("asyncmq")  # by name: it is in its own environment only
    asyncmq.monkay.settings.sandbox_ctx = context
    run_handler = import_module("asyncmq.sandbox").run_handler
    tasks = import_module("rivals.asyncmq_tasks")

    def once(number: int) -> float:
        called = time.monotonic()
        value, started = run_handler(tasks.TASK_ID, [number, 1], {}, _TIMEOUT, False)
        assert value == number + 1, value
        return float(started) - called

    orders.serve(orders.in_lanes(once), desk, version=version("asyncmq"))


if __name__ == "__main__":
    main(sys.argv[1])
