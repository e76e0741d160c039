"""Tasks that take all the time that there is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import threading
import time
from typing import Any

from fumehood.common import SoftTimeout, task

FOREVER = 60.0  # seconds; far above every timeout here, and an end if nobody makes one


def _spin(seconds: float = FOREVER) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@task
def busy() -> None:
    _spin()


@task
def sleep(seconds: float = FOREVER) -> str:
    time.sleep(seconds)
    return "slept"


@task
async def block_the_loop() -> None:
    time.sleep(FOREVER)  # noqa: ASYNC251 - the very fault


@task
def ignore_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    time.sleep(FOREVER)


@task
def block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(FOREVER)


@task
def handle_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, lambda *_: time.sleep(FOREVER))
    while True:
        time.sleep(FOREVER)


@task(soft_timeout=0.1)
def swallow_everything() -> None:
    end = time.monotonic() + FOREVER
    while time.monotonic() < end:
        try:
            time.sleep(FOREVER)
        except BaseException:  # noqa: BLE001, S112 - that is its fault
            continue


@task(soft_timeout=0.1)
def heed_the_soft_timeout() -> str:
    try:
        time.sleep(FOREVER)
    except SoftTimeout:
        return "tidied up"
    return "slept"


@task(soft_timeout=0.1)
def fail_by_the_soft_timeout() -> None:
    time.sleep(FOREVER)


@task(soft_timeout=0.1)
def deaf_to_the_soft_timeout() -> None:
    sum(range(10**12))


@task
def regex() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


@task
def power() -> int:
    return int((7 ** (10**8)).bit_length())


@task
def sum_up() -> int:
    return sum(range(10**12))


@task
def hold_the_gil() -> None:
    ctypes.PyDLL(None).sleep(int(FOREVER))  # a PyDLL keeps the GIL while it calls


@task
def deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=FOREVER)


@task
def spin_in_threads(count: int) -> None:
    for _ in range(count):
        threading.Thread(target=_spin).start()
    _spin()


@task
def spin_in_children(count: int) -> None:
    for _ in range(count):
        if os.fork() == 0:
            _spin()
            os._exit(0)
    _spin()


@task
def children_that_burn_in_turn(seconds: float) -> None:
    """CPU time that only a cgroup counts: each child ends before anybody waits for it."""
    end = time.monotonic() + FOREVER
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while time.monotonic() < end:
        child = os.fork()
        if child == 0:
            _spin(seconds)
            os._exit(0)
        while os.path.exists(f"/proc/{child}"):  # noqa: PTH110 - in a loop
            time.sleep(0.002)


@task
def ignore_the_cpu_limit() -> None:
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    _spin()


@task
def set_the_clock(days: float) -> str:
    try:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + days * 86400)
    except PermissionError:
        return "denied"
    return "set"


@task
def stop_yourself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(FOREVER)


@task
def look_at(path: str) -> Any:
    """Where the file system never answers this never returns, whatever signal comes."""
    return list(os.stat(path))  # noqa: PTH116
