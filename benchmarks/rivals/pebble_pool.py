"""pebble's ``ProcessPool``, one task per process: ``python -m rivals.pebble_pool SLOTS``."""

from __future__ import annotations

import multiprocessing
import sys
import time
from importlib import import_module
from importlib.metadata import version

from rivals import orders, rival_tasks

_TIMEOUT = 30.0  # seconds a job may take


def main(slots: int) -> None:
    desk = orders.Desk()
    pebble = import_module("pebble")  # by name: it is in its own environment only
    context = multiprocessing.get_context("fork")
    with pebble.ProcessPool(max_workers=slots, max_tasks=1, context=context) as pool:

        def once(number: int) -> float:
            called = time.monotonic()
            future = pool.schedule(rival_tasks.add, args=(number, 1), timeout=_TIMEOUT)
            value, started = future.result()
            assert value == number + 1, value
            return float(started) - called

        orders.serve(orders.in_lanes(once), desk, version=version("pebble"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
