"""A fork per job and nothing around it: ``python benchmarks/bare_fork.py [zygote]``, a runner.

With ``zygote`` it is the measure of what sandboxing costs: a process that has imported what a
zygote of Fumehood's must (the tasks' own parts, msgpack, the task module), started with the same
environment and frozen alike, forks for each job; the child reads the job from a socket, runs it,
writes the result and leaves; the parent reads it and waits for the child.

Without, it is the smallest interpreter, one job at a time: the floor under any scheme with a Python
process per job. Imports nothing that it does not need, for what is imported is copied.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    Run = Callable[[int, int, float], list[float]]


def smallest(count: int, width: int, pause: float) -> list[float]:
    """Fork, compute, write, exit, read, reap; the width does not matter."""
    latency: list[float] = []
    for number in range(count):
        if pause:
            time.sleep(pause)
        reading, writing = os.pipe()
        called = time.monotonic_ns()
        pid = os.fork()
        if pid == 0:
            os.write(writing, b"%d %d" % (time.monotonic_ns(), number + 1))
            os._exit(0)
        os.close(writing)
        started, value = os.read(reading, 100).split()
        os.close(reading)
        os.waitpid(pid, 0)
        assert int(value) == number + 1
        latency.append((int(started) - called) / 1e9)
    return latency


def as_zygote() -> Run:
    """Import what a zygote has, settle, and return what runs jobs."""
    import gc
    import select
    from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair

    import bench_tasks
    import msgpack

    function = bench_tasks.add.function

    def child(job: int) -> NoReturn:
        args = msgpack.unpackb(os.read(job, 8192))
        started = time.monotonic()
        os.write(job, msgpack.packb([started, function(*args)]))
        os._exit(0)

    def run(count: int, width: int, pause: float) -> list[float]:
        poll, flying, latency = select.poll(), {}, list[float]()
        numbers = iter(range(count))

        def launch() -> None:
            number = next(numbers, None)
            if number is None:
                return
            if pause:
                time.sleep(pause)
            ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
            called = time.monotonic()
            pid = os.fork()
            if pid == 0:
                child(theirs.fileno())
            theirs.close()
            ours.send(msgpack.packb([number, 1]))
            poll.register(ours, select.POLLIN)
            flying[ours.fileno()] = (ours, pid, called, number)

        for _ in range(width):
            launch()
        while flying:
            for fd, _ in poll.poll():
                ours, pid, called, number = flying.pop(fd)
                started, value = msgpack.unpackb(ours.recv(8192))
                assert value == number + 1
                latency.append(started - called)
                poll.unregister(fd)
                ours.close()
                os.waitpid(pid, 0)
                launch()
        return latency

    gc.collect()
    gc.freeze()
    return run


def main() -> None:
    """Serve orders as ``rivals/orders.py`` tells, which is too large to be imported here."""
    run = as_zygote() if sys.argv[1:] == ["zygote"] else smallest
    print('{"ready": true}', flush=True)
    for line in sys.stdin:
        _, count, width, pause = line.split()
        began = time.perf_counter()
        latency = run(int(count), int(width), float(pause))
        seconds = time.perf_counter() - began
        print(f'{{"seconds": {seconds}, "latency": {latency}}}', flush=True)  # a list is JSON too


if __name__ == "__main__":
    main()
