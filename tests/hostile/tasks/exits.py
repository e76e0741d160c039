"""Tasks that end in every way in which a process can."""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from fumehood.common import task

_KEPT: list[Any] = []  # what must not be collected before the end

LONG = 20.0  # seconds; what would be noticed


@task
def crash(kind: str) -> None:
    if kind == "null":
        ctypes.string_at(0)
    elif kind == "abort":
        os.abort()
    elif kind == "stack":
        sys.setrecursionlimit(1 << 30)
        _overflow(0)
    elif kind == "bus":
        _read_beyond_a_file()
    elif kind == "free":
        ctypes.CDLL(None).free(ctypes.c_void_p(0xDEADBEEF))
    elif kind == "fatal":
        faulthandler._fatal_error_c_thread()  # type: ignore[attr-defined]
    else:
        signal.raise_signal(getattr(signal, kind))


def _overflow(depth: int) -> int:
    # Through C at each step: the interpreter's own frames take no C stack.
    return max([depth], key=_overflow)


def _read_beyond_a_file() -> None:
    import mmap

    fd = os.memfd_create("short")
    os.ftruncate(fd, 4096)
    area = mmap.mmap(fd, 4096)
    os.ftruncate(fd, 0)
    print(area[0])


@task
def crash_in_a_thread() -> None:
    threading.Thread(target=ctypes.string_at, args=(0,)).start()
    time.sleep(LONG)


@task
def crash_in_a_child() -> int:
    child = os.fork()
    if child == 0:
        os.abort()
    return os.waitpid(child, 0)[1]


@task
def exit_now(code: int) -> None:
    os._exit(code)


@task
def exit_in_a_thread(code: int) -> None:
    threading.Thread(target=os._exit, args=(code,)).start()
    time.sleep(LONG)


@task
def leave(code: Any) -> None:
    sys.exit(code)


@task
def leave_in_a_thread() -> str:
    thread = threading.Thread(target=sys.exit, args=(3,))
    thread.start()
    thread.join()
    return "stayed"


@task
def alarm(number: str, seconds: float) -> None:
    timer = {"SIGALRM": signal.ITIMER_REAL, "SIGVTALRM": signal.ITIMER_VIRTUAL}[number]
    signal.setitimer(timer, seconds)
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        pass


@task
def raise_plain(kind: str) -> None:
    import builtins

    raise getattr(builtins, kind)("on purpose")


def _say(*_: Any) -> Any:
    raise SystemExit("not even this")


def _hang(*_: Any) -> Any:
    time.sleep(LONG)


def _gorge(*_: Any) -> str:
    return "x" * (100 << 20)


def _lie(*_: Any) -> Any:
    return 42


_FAULTS: dict[str, Callable[..., Any]] = {
    "raises": _say, "hangs": _hang, "gorges": _gorge, "lies": _lie,
}  # fmt: skip


@task
def raise_class(method: str, fault: str) -> None:
    """An exception whose ``method`` has a fault."""
    function = _FAULTS[fault]
    member: Any = property(function) if method in ("__class__", "__dict__", "args") else function
    raise type("Hostile", (Exception,), {method: member})("of a hostile class")


@task
def raise_with_a_metaclass() -> None:
    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            raise RuntimeError(name)

        def __instancecheck__(cls, instance: object) -> bool:
            raise RuntimeError

    class Odd(Exception, metaclass=Meta): ...

    raise Odd("by a metaclass")


@task
def raise_chain(kind: str, length: int) -> None:
    first = current = ValueError("the first")
    for number in range(length):
        following = ValueError(f"number {number}")
        following.__cause__ = current
        current = following
    if kind == "cyclic":
        first.__context__ = current
        first.__cause__ = current
    raise current


@task
def raise_large(size: int) -> None:
    raise ValueError("x" * size)


@task
def raise_with_notes(count: int) -> None:
    exc = ValueError("with notes")
    for _ in range(count):
        exc.add_note("n" * 1000)
    exc.__notes__.append(object())  # type: ignore[arg-type]
    raise exc


@task
def raise_group(depth: int, width: int) -> None:
    exc: Any = ValueError("innermost")
    for _ in range(depth):
        exc = ExceptionGroup("group", [exc] * width)
    raise exc


@task
def raise_text(text: str) -> None:
    raise ValueError(text.encode().decode("unicode_escape"))


@task
def raise_from_odd_source(mark: str) -> None:
    """A traceback through a file that is no UTF-8."""
    name = f"<{mark}\ud800\x1b[31m>"
    exec(compile("def f():\n    raise ValueError('odd source')\nf()", name, "exec"), {})  # noqa: S102


@task
def raise_liar(path: str) -> None:
    """What would make ``path`` if anybody unpickled, imported or called it."""

    class Liar(Exception):
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {path}",)

    Liar.__module__, Liar.__qualname__ = "os", "system"
    raise Liar(f"touch {path}")


class Weaver:
    """What begins again whenever it is destroyed."""

    def __del__(self) -> None:
        Weaver()
        time.sleep(0.01)


@task
def leave_behind(what: str) -> str:  # noqa: C901 - a catalogue
    """Return, with something that would delay or disturb an orderly end."""
    if what == "atexit hangs":
        atexit.register(time.sleep, LONG)
    elif what == "atexit writes":
        atexit.register(os.write, 1, b"written at exit")
        atexit.register(os.write, 3, b"V\xc0")
    elif what == "atexit forks":
        atexit.register(os.fork)
    elif what == "threads":
        for _ in range(4):
            threading.Thread(target=time.sleep, args=(LONG,)).start()
    elif what == "destructors":
        gc.disable()
        _KEPT.extend(Weaver() for _ in range(10))
    elif what == "streams":
        sys.stdout = sys.stderr = cast("Any", _Stream())
    elif what == "generator":
        _KEPT.append(_stubborn())
        next(_KEPT[0])
    elif what == "stdout":
        os.close(1)
        os.close(2)
    elif what == "excepthook":
        sys.excepthook = lambda *_: time.sleep(LONG)
        sys.unraisablehook = lambda _: time.sleep(LONG)
    elif what == "trace":
        sys.settrace(lambda *_: None)
    elif what == "profile":
        sys.setprofile(lambda *_: time.sleep(0))
    return "returned"


class _Stream:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        raise SystemExit(9)


def _stubborn() -> Iterator[int]:
    while True:
        try:
            yield 1
        except GeneratorExit:
            continue


@task
def exists(path: str) -> bool:
    return Path(path).exists()
