"""Tasks that start processes, hide them, and turn against those around them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from fumehood.common import task

FOREVER = 20.0  # seconds that a process lives if nobody ends it
_PR_SET_CHILD_SUBREAPER, _PR_SET_PDEATHSIG = 36, 1
_libc = ctypes.CDLL(None, use_errno=True)


def attempt(action: Callable[[], Any]) -> str:
    """``done``, or the name of the errno that it failed with."""
    try:
        action()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc.errno))
    return "done"


def _wait_for_byte(fd: int) -> None:
    os.read(fd, 1)


@task
def fork_bomb(most: int) -> str:
    """Children until one is refused, at most ``most`` of them."""
    for _ in range(most):
        if os.fork() == 0:
            time.sleep(FOREVER)
            os._exit(0)
    return "unbounded"


@task
def stubborn_fork_bomb(most: int) -> str:
    """The same by every child, where refusals are tried again; ``most`` in all."""
    made = mmap.mmap(-1, most + 1)  # one byte for each that was made
    end = time.monotonic() + FOREVER
    while time.monotonic() < end:
        if made.find(b"\0") < most:
            made[made.find(b"\0")] = 1
            with contextlib.suppress(OSError):
                os.fork()
        time.sleep(0.002)
    return "ended by itself"


@task
def thread_bomb(most: int) -> str:
    import threading

    for _ in range(most):
        threading.Thread(target=time.sleep, args=(FOREVER,), daemon=True).start()
    return "unbounded"


@task
def leave_daemons(count: int, how: str = "plain") -> str:
    """Return while ``count`` processes of sessions of their own live on."""
    ready, told = os.pipe()
    for _ in range(count):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                _become_daemon(how, told)
            os._exit(0)
    for _ in range(count):
        _wait_for_byte(ready)
    return "left"


def _become_daemon(how: str, told: int) -> None:
    if how == "deaf":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    if how == "reaper":
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        if os.fork() == 0:
            time.sleep(FOREVER)
            os._exit(0)
    if how == "stopped":
        os.write(told, b".")
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "nameless":
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:  # noqa: PTH123
            file.write("kworker/0:0")
    if how != "stopped":
        os.write(told, b".")
    if how == "closed":
        os.closerange(0, 256)
    if how == "treadmill":
        _treadmill()
    time.sleep(FOREVER)
    os._exit(0)


def _treadmill() -> None:
    """Never the same process for long: who looks up its id finds it gone."""
    end = time.monotonic() + FOREVER
    while time.monotonic() < end:
        if os.fork():
            os._exit(0)


@task
def leave_daemon_and_hang(how: str = "plain") -> None:
    leave_daemons.function(2, how)
    time.sleep(FOREVER)


@task
def leave_daemon_and_crash() -> None:
    leave_daemons.function(2)
    os.abort()


@task
def exec_true() -> None:
    os.execvp("true", ["true"])  # noqa: S606 - so it is meant


@task
def run_program() -> str:
    return attempt(lambda: subprocess.run(["true"], check=True))


@task
def exec_a_sleeper() -> None:
    """Another program in this process, with no Python left to dump a stack of."""
    command = [sys.executable, "-S", "-c", f"import time; time.sleep({FOREVER})"]
    os.execv(sys.executable, command)  # noqa: S606 - so it is meant


@task
def exec_storm() -> None:
    end = time.monotonic() + FOREVER
    while time.monotonic() < end:
        subprocess.Popen(["true"]).wait()


@task
def kill_parent() -> str:
    return attempt(lambda: os.kill(os.getppid(), signal.SIGKILL))


@task
def stop_parent() -> str:
    return attempt(lambda: os.kill(os.getppid(), signal.SIGSTOP))


@task
def signal_outside(pid: int, number: int) -> str:
    return attempt(lambda: os.kill(pid, number))


@task
def kill_everything(outside: int) -> str:
    """``kill(-1)``, but only where the process ``outside`` is out of reach."""
    if attempt(lambda: os.kill(outside, 0)) == "done":
        return "reachable"
    attempt(lambda: os.kill(-1, signal.SIGKILL))
    return "survived"


@task
def kill_groups() -> str:
    """The group of this process's parent, where that is another one."""
    group = os.getpgid(os.getppid()) if os.getppid() else 0
    if group in (0, os.getpgid(0)):
        return "no other"
    return attempt(lambda: os.killpg(group, 0))


@task
def shake_off_and_hang() -> None:
    """All that might tie this process to somebody, undone."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with contextlib.suppress(OSError):
        os.setpgid(0, os.getpgid(os.getppid()))
    if os.fork() == 0:
        os.setsid()
        time.sleep(FOREVER)
        os._exit(0)
    time.sleep(FOREVER)


@task
def run_away_and_hang() -> None:
    """The first process gone, its work going on in an orphan."""
    if os.fork():
        os._exit(0)
    os.setsid()
    time.sleep(FOREVER)


@task
def press_ahead() -> None:
    """As high a priority as it can get, then a loop."""
    actions: list[Callable[[], Any]] = [
        lambda: os.nice(-20),
        lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)),
        lambda: os.sched_setaffinity(0, {0}),
    ]
    for action in actions:
        attempt(action)
    end = time.monotonic() + FOREVER
    while time.monotonic() < end:
        pass


@task
def raise_priority() -> list[str]:
    return [
        attempt(lambda: os.setpriority(os.PRIO_PROCESS, 0, -20)),
        attempt(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))),
        attempt(lambda: _write("/proc/self/oom_score_adj", "-1000")),
    ]


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123
        file.write(text)


@task
def raise_limits() -> list[str]:
    """The names of the hard limits that it could raise."""
    import resource

    raised: list[str] = []
    for name in ("RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_NPROC"):
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        if hard == resource.RLIM_INFINITY:
            continue
        try:
            resource.setrlimit(number, (hard + 1, hard + 1))
        except (OSError, ValueError):
            continue
        raised.append(name)
    return raised


@task
def leave_zombies(count: int) -> str:
    for _ in range(count):
        if os.fork() == 0:
            os._exit(0)
    return "left"
