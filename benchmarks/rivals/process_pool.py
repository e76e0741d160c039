"""``ProcessPoolExecutor``, one task per child: ``python -m rivals.process_pool CONTEXT SLOTS``.

CONTEXT is "spawn" or "forkserver": with "fork" the executor refuses ``max_tasks_per_child``.
"""

from __future__ import annotations

import multiprocessing
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from rivals import orders, rival_tasks

# Seconds a job may take. With one task per child this executor is known to stand still at times:
# https://github.com/python/cpython/issues/115634
_TIMEOUT = 15.0


def main(context: str, slots: int) -> None:
    desk = orders.Desk()
    pool = ProcessPoolExecutor(slots, multiprocessing.get_context(context), max_tasks_per_child=1)

    def once(number: int) -> float:
        called = time.monotonic()
        future = pool.submit(rival_tasks.add, number, 1)
        try:
            value, started = future.result(_TIMEOUT)
        except TimeoutError:
            raise RuntimeError(f"stood still for {_TIMEOUT:g} s (cpython#115634)") from None
        assert value == number + 1, value
        return started - called

    orders.serve(orders.in_lanes(once), desk, version=platform.python_version())
    pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
