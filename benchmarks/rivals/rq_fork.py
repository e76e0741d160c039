"""RQ's fork per job: ``python -m rivals.rq_fork REDIS_SERVER SLOTS``.

An RQ worker takes its jobs from Redis and writes results to it, and its fork cannot be had without
that; so there is a Redis of its own here, in memory, on a socket that only this process's user
reaches, and as many workers as there are slots. All jobs of a run are queued at once, which spares
RQ the wait for the next one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rivals import orders, rival_tasks

_TIMEOUT = 30  # seconds a job may take
_START_MAX = 10.0  # seconds for Redis to answer


@contextlib.contextmanager
def redis_server(program: str, folder: Path) -> Iterator[str]:
    """A private Redis; the path of its socket."""
    address = str(folder / "redis.sock")
    command = [program, "--port", "0", "--unixsocket", address, "--unixsocketperm", "700"]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder), "--loglevel", "warning"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        _await_answer(process, address)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _await_answer(process: subprocess.Popen[bytes], address: str) -> None:
    redis = import_module("redis")
    give_up = time.monotonic() + _START_MAX
    while True:
        try:
            redis.Redis(unix_socket_path=address).ping()
            return
        except redis.exceptions.ConnectionError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError("redis-server does not answer") from None
            time.sleep(0.02)


def work(address: str) -> None:
    """Be one of RQ's workers, in a process forked for it, until killed."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    rq = import_module("rq")
    redis = import_module("redis").Redis(unix_socket_path=address)
    rq.Worker([rq.Queue("bench", connection=redis)], connection=redis).work(logging_level="ERROR")


@contextlib.contextmanager
def workers(address: str, slots: int) -> Iterator[None]:
    """As many workers, each in a process."""
    pids: list[int] = []
    try:
        for _ in range(slots):
            pid = os.fork()
            if pid == 0:
                try:
                    work(address)
                finally:
                    os._exit(1)
            pids.append(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _result(job: Any, number: int) -> float:
    """Wait for a job; when its task started."""
    result = job.latest_result(timeout=_TIMEOUT)
    if result is None or result.return_value is None:
        raise RuntimeError(f"no result: {result and result.exc_string}")
    value, started = result.return_value
    assert value == number + 1, value
    return float(started)


def runs(queue: Any) -> orders.Run:
    """How jobs are run through this queue."""

    def one_by_one(count: int, pause: float) -> list[float]:
        found: list[float] = []
        for number in range(count):
            time.sleep(pause)
            called = time.monotonic()
            job = queue.enqueue(rival_tasks.add, number, 1, job_timeout=_TIMEOUT)
            found.append(_result(job, number) - called)
        return found

    def run(count: int, width: int, pause: float) -> list[float]:
        if width == 1:
            return one_by_one(count, pause)
        prepare = type(queue).prepare_data
        data = [prepare(rival_tasks.add, (n, 1), timeout=_TIMEOUT) for n in range(count)]
        for number, job in enumerate(queue.enqueue_many(data)):
            _result(job, number)
        return []  # most of it would be the time in the queue

    return run


def main(program: str, slots: int) -> None:
    desk = orders.Desk()
    rq, redis = import_module("rq"), import_module("redis")  # in their own environment only
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server(program, Path(folder)) as address,
        workers(address, slots),
    ):
        queue = rq.Queue("bench", connection=redis.Redis(unix_socket_path=address))
        orders.serve(runs(queue), desk, version=version("rq"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
