"""Tasks that behave, and tasks that do not, for the tests of sandboxes."""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import enum
import faulthandler
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fumehood.common import SoftTimeout, current_job, task
from fumehood.common.errors import DecodeError

JOB_FD = 3
_libc = ctypes.PyDLL(None)  # keeps the GIL while it calls


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


class Person(BaseModel):
    name: str
    age: int


# --- plain ----------------------------------------------------------------------------------


@task
def add(a: int, b: int = 10) -> int:
    return a + b


@task
async def add_async(a: int, b: int = 10) -> int:
    await asyncio.sleep(0.001)
    return a + b


@task
def rebuilt(colour: Colour, point: Point, person: Person) -> list[Any]:
    return [type(colour).__name__, type(point).__name__, type(person).__name__, point.x, person.age]


@task
def give(size: int) -> bytes:
    return bytes(size)


@task
def take(data: bytes) -> int:
    return len(data)


@task
def nothing() -> None:
    return None


@task
def pid() -> int:
    return os.getpid()


# --- ends -----------------------------------------------------------------------------------


def _deeper(n: int) -> None:
    if n == 0:
        raise ValueError("deep down")
    _deeper(n - 1)


@task
def raise_deep(n: int) -> None:
    _deeper(n)


@task
async def raise_async() -> None:
    await asyncio.sleep(0)
    raise LookupError("from a coroutine")


@task
def raise_it(name: str) -> None:
    import builtins

    raise getattr(builtins, name)("on purpose")


@task
def leave(code: Any) -> None:
    raise SystemExit(code)


@task
def exit_now(code: int) -> None:
    os._exit(code)


@task
def crash(kind: str) -> None:
    signal.raise_signal(getattr(signal, kind))


@task
def segfault() -> None:
    faulthandler._sigsegv()  # type: ignore[attr-defined]


@task
def recurse() -> int:
    return recurse() + 1


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even this")

    __repr__ = __str__


class Slow(Exception):
    def __str__(self) -> str:
        time.sleep(60)
        return ""


@task
def raise_decode_error() -> None:
    raise DecodeError("of the task's own making")


@task
def raise_unspeakable() -> None:
    raise Unspeakable


@task
def raise_slow() -> None:
    raise Slow


@task
def raise_hidden() -> None:
    def lie(_: Any) -> Any:
        raise RuntimeError

    class Liar(Exception):
        def __len__(self) -> int:
            raise KeyboardInterrupt

    for name in ("cause", "context", "traceback"):
        setattr(Liar, f"__{name}__", property(lie))
    Liar.__qualname__ = "Liar\ud800"
    raise Liar("lies \ud800")


@task
def give_back(what: str) -> Any:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def asyncgen() -> AsyncIterator[int]:
        yield 1

    things: dict[str, Any] = {
        "object": object,
        "circle": lambda: loop,
        "deep": lambda: deep,
        "coroutine": coroutine,
        "generator": generator,
        "asyncgen": asyncgen,
        "lock": threading.Lock,
    }
    return things[what]()


# --- time -----------------------------------------------------------------------------------


@task
def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@task
async def sleep_async(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task
def hang(how: str) -> None:  # noqa: C901, PLR0912 - a catalogue
    if how == "busy":
        while True:
            pass
    elif how == "sum":
        sum(range(10**12))
    elif how == "regex":
        re.match(r"(a+)+$", "a" * 64 + "b")
    elif how == "ignored":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)
    elif how == "masked":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        time.sleep(60)
    elif how == "threads":
        for _ in range(8):
            threading.Thread(target=hang.function, args=("busy",)).start()
        time.sleep(60)
    elif how == "gil":
        _libc.sleep(60)
    elif how == "swallow":
        while True:
            try:
                time.sleep(60)
            except BaseException:  # noqa: BLE001, S112 - that is its fault
                continue
    elif how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)


@task
def remaining() -> list[float]:
    job = current_job()
    return [job.timeout, job.remaining()]


@task
def about() -> list[Any]:
    job = current_job()
    return [job.id, job.task, job.attempt, job.token]


# --- processes ------------------------------------------------------------------------------


def daemonise(count: int, file: str, *, hold_stdout: bool = True) -> None:
    """Leave ``count`` processes of sessions of their own, and their ids in ``file``."""
    for _ in range(count):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                if not hold_stdout:
                    os.closerange(0, 10)
                with Path(file).open("a") as ids:
                    ids.write(f"{os.getpid()}\n")
                time.sleep(300)
            os._exit(0)
    while not Path(file).exists() or len(Path(file).read_text().split()) < count:
        time.sleep(0.002)


@task
def leak(count: int, file: str) -> str:
    daemonise(count, file)
    return "done"


@task
def leak_and_hang(count: int, file: str) -> None:
    daemonise(count, file, hold_stdout=False)
    time.sleep(300)


@task
def leave_dead_child() -> int:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return child.pid


@task
def bomb(file: str) -> str:
    for _ in range(50):
        if os.fork() == 0:
            while True:
                time.sleep(1)
    Path(file).write_text("lit")
    return "lit"


@task
def hang_when_told(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(300)


@task
def return_when_told(running: str, go: str) -> str:
    Path(running).write_text(str(os.getpid()))
    while not Path(go).exists():
        time.sleep(0.002)
    return "told"


@task
def die_when_told(how: str, running: str, go: str) -> str:
    return_when_told.function(running, go)
    if how == "raise":
        raise ValueError("told")
    if how == "crash":
        os.abort()
    if how == "exit":
        os._exit(9)
    time.sleep(300)
    return ""


@task
def kill_parent() -> str:
    os.kill(os.getppid(), signal.SIGKILL)
    return "done"


# --- output ---------------------------------------------------------------------------------


@task
def say(out: str, err: str = "") -> None:
    sys.stdout.write(out)
    sys.stderr.write(err)


@task
def flood(size: int) -> str:
    chunk = b"x" * (1 << 16)
    for _ in range(size >> 16):
        os.write(1, chunk)
    return "poured"


@task
def say_odd(how: str) -> None:
    if how == "binary":
        os.write(1, bytes(range(256)))
    elif how == "closed":
        sys.stdout.write("before")
        sys.stdout.close()
        sys.stderr.write("after")
    elif how == "replaced":
        import io

        print("first", end="")
        sys.stdout = io.StringIO()
        print("lost")
    elif how == "none":
        print("first", end="")
        sys.stdout = None
    elif how == "c":
        libc = ctypes.CDLL(None)
        libc.printf(b"from C")
    elif how == "killed":
        print("before the kill")
        os.write(2, b"bare")
        time.sleep(300)


# --- surroundings ---------------------------------------------------------------------------


@task
def environment() -> dict[str, str]:
    own = Path("/proc/self/environ").read_bytes().split(b"\0")
    first = dict(entry.split(b"=", 1) for entry in own if b"=" in entry)
    return {**os.environ, **{k.decode(): v.decode() for k, v in first.items()}}


@task
def census() -> dict[str, Any]:
    fds: dict[int, str] = {}
    for fd in Path("/proc/self/fd").iterdir():
        try:
            fds[int(fd.name)] = str(fd.readlink())
        except FileNotFoundError:
            continue
    umask = os.umask(0)
    os.umask(umask)
    handlers = {
        int(n): str(signal.getsignal(n))
        for n in signal.valid_signals()
        if n not in (signal.SIGKILL, signal.SIGSTOP)
    }
    return {
        "fds": fds,
        "cwd": str(Path.cwd()),
        "umask": umask,
        "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "handlers": handlers,
        "group": os.getpgid(0) == os.getpid(),
        "terminal": _has_terminal(),
        "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
    }


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


@task
def spoil() -> None:
    os.chdir("/")
    os.umask(0)
    os.environ["SPOILT"] = "1"
    sys.modules.pop("re", None)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@task
def dice() -> list[str]:
    return [str(random.random()), str(uuid.uuid4()), os.urandom(8).hex()]


# --- progress -------------------------------------------------------------------------------


@task(progress=True)
def report(count: int) -> str:
    for each in range(count):
        current_job().progress(each / count, f"step {each}", {"at": each})
    current_job().progress(1.0, "done")
    return "reported"


# --- hostile frames -------------------------------------------------------------------------


def _channel() -> socket.socket:
    return socket.socket(fileno=os.dup(JOB_FD))


@task
def send_raw(frames: list[bytes], stay: bool = False) -> str:
    with _channel() as channel:
        for frame in frames:
            channel.send(frame)
    if stay:
        time.sleep(300)
    return "sent"


@task
def send_many(frame: bytes, count: int) -> str:
    with _channel() as channel:
        for _ in range(count):
            channel.send(frame)
    return "sent"


@task
def send_descriptor(kind: str, letter: bytes = b"M") -> str:
    read, write = os.pipe()
    kinds: dict[str, Callable[[], list[int]]] = {
        "pipe": lambda: [read],
        "unsealed": lambda: [_memfd()],
        "zero": lambda: [os.open("/dev/zero", os.O_RDWR)],
        "file": lambda: [os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)],
        "none": list,
        "many": lambda: [os.dup(write) for _ in range(200)],
    }
    fds = kinds[kind]()
    with _channel() as channel:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        channel.sendmsg([letter], rights)
    time.sleep(300)
    return "sent"


def _memfd() -> int:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(fd, b"\xc0")
    return fd


@task
def close_channel() -> str:
    os.close(JOB_FD)
    return "closed"


@task
def forge_and_exit(frame: bytes, code: int) -> None:
    os.write(JOB_FD, frame)
    os._exit(code)


@task
def forge_and_hang(frame: bytes) -> None:
    os.write(JOB_FD, frame)
    time.sleep(300)


@task(soft_timeout=0.1)
def clean_up(seconds: float) -> str:
    """Ends a little after its soft timeout, with what it has."""
    try:
        time.sleep(seconds)
    except SoftTimeout:
        return "cleaned up"
    return "finished"


@task(soft_timeout=0.1)
def go_on_regardless() -> None:
    """Takes no notice of anything."""
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(0.01)


@task(soft_timeout=0.1)
async def clean_up_async(seconds: float) -> str:
    """The same, in a coroutine that gives its loop time."""
    try:
        await asyncio.sleep(seconds)
    except SoftTimeout:
        return "cleaned up"
    return "finished"


@task(soft_timeout=0.1)
def raise_on() -> None:
    """Does nothing about it."""
    time.sleep(30)


@task(soft_timeout=0.1)
async def spin_async() -> str:
    """Does not give its loop any time."""
    try:
        while True:
            pass
    except SoftTimeout:
        return "cleaned up"


@task
def fill_tmp(size: int) -> list[int]:
    """The errno at which writing ended, or 0, and the bytes that fitted, in whole MiB."""
    step, written = bytes(1 << 20), 0
    with Path(tempfile.gettempdir(), "filled").open("wb", buffering=0) as file:
        try:
            while written < size:
                written += file.write(step)
        except OSError as exc:
            return [exc.errno or 0, -(-written // len(step)) * len(step)]
    return [0, written]
