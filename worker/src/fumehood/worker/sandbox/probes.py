"""The jobs of a doctor. Each tries what its name says, and tells how that ended.

Imported in zygotes only: who imports it declares its tasks. None takes more than its arguments
say, or lives longer than half a minute, even where nothing holds it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import tempfile
import threading
import time
from errno import errorcode
from functools import partial

from fumehood.common.context import current_job
from fumehood.common.task import task
from fumehood.worker.sandbox import acts, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_MIB = 1 << 20
_LIFE_MAX = 30  # seconds
_PR_SET_NAME = 15


# --- limits ---------------------------------------------------------------------------------


@task
def heap(size: int) -> int:
    """Take ``size`` bytes of memory, a MiB at a time."""
    kept = [bytearray(b"x") * _MIB for _ in range(size // _MIB)]
    return len(kept)


@task
def memfd(size: int) -> int:
    """Write ``size`` bytes to a file in memory that no process maps."""
    fd = os.memfd_create("probe")
    piece = bytes(_MIB)
    return sum(os.write(fd, piece) for _ in range(size // _MIB))


@task
def forks(most: int) -> dict[str, Any]:
    """Have up to ``most`` children at a time; how many there could be, and why not more."""
    wait, go_on = os.pipe()
    children: list[int] = []
    why = acts.OK
    while len(children) < most and why == acts.OK:
        try:
            children.append(_fork(lambda: os.read(wait, 1), go_on))
        except OSError as exc:
            why = errorcode.get(exc.errno or 0, str(exc))
    os.close(go_on)
    for child in children:
        os.waitpid(child, 0)
    return {"children": len(children), "why": why}


@task
def spin(seconds: float) -> str:
    """Use so much CPU time alone."""
    _spin(seconds)
    return acts.OK


@task
def spin_together(children: int, seconds: float, linger: float) -> str:
    """Use so much CPU time in each of some children, all of which then linger."""
    told, tell = os.pipe()
    wait, go_on = os.pipe()

    def child() -> None:
        _spin(seconds)
        os.write(tell, b".")
        os.read(wait, 1)

    for _ in range(children):
        _fork(child, go_on)
    for _ in range(children):
        os.read(told, 1)
    time.sleep(linger)
    return acts.OK


def _spin(seconds: float) -> None:
    while time.process_time() < seconds:
        pass


def _fork(live: Callable[[], object], *close: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(_LIFE_MAX)
        for fd in close:
            os.close(fd)
        live()
    finally:
        os._exit(0)


# --- the end --------------------------------------------------------------------------------


@task
def hang(mark: str) -> None:
    """Leave a process of that name which has detached itself, and never come back.

    It hangs in the standard library: of a stack, frames of this folder are not shown.
    """
    _fork(lambda: _detach(mark))
    threading.Event().wait()


def _detach(mark: str) -> None:
    os.setsid()
    _fork(lambda: _linger(mark))


def _linger(mark: str) -> None:
    name = ctypes.create_string_buffer(mark.encode())
    kernel.prctl(_PR_SET_NAME, ctypes.addressof(name))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(_LIFE_MAX)


@task
def crash() -> None:
    """Die by SIGSEGV."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)


@task
def leave(code: int) -> None:
    """Exit without a word."""
    os._exit(code)


@task(progress=True)
def stay() -> None:
    """Tell the own process id, and stay."""
    current_job().progress(0.5, str(os.getpid()))
    time.sleep(_LIFE_MAX)


# --- what is outside ------------------------------------------------------------------------


@task
def reach_processes(pids: Mapping[str, int], victim: int) -> dict[str, dict[str, str]]:
    """Spy on processes and signal them; ``victim`` gets a SIGTERM."""
    targets = {**pids, "the parent": os.getppid()}
    spied = {
        f"{what} of {name}": said
        for name, pid in {**targets, "a neighbour": victim}.items()
        for what, said in acts.spy_on(pid).items()
    }
    # Of nobody else: whoever is traced is held up by it.
    spied["tracing a neighbour"] = acts.trace(victim)
    signals = {name: acts.send_signal(pid, 0) for name, pid in targets.items()}
    signals["a neighbour"] = acts.send_signal(victim, signal.SIGTERM)
    own = {"status": acts.read("/proc/self/status"), "signal": acts.attempt(_signal_itself)}
    return {"spied": spied, "signals": signals, "own": own}


def _signal_itself() -> None:
    os.kill(os.getpid(), 0)


@task
def reach_network(where: Mapping[str, Any], text: bytes) -> dict[str, Any]:
    """Speak to listeners of the host, and listen."""
    return {
        "reached": acts.network(where, text),
        "listen": acts.listen(),
        "namespace": acts.network_namespace(),
        "pair": acts.attempt(_speak_to_itself),
    }


def _speak_to_itself() -> None:
    import socket

    one, other = socket.socketpair()
    with one, other:
        one.send(b"x")
        other.recv(1)


@task
def reach_files(
    code: Sequence[str], hidden: Sequence[str], cgroups: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Open code to change it, files of the host to read them, and cgroups to leave them."""
    return {
        "code": {path: acts.open_to_write(path) for path in code},
        "mounts": {path: _how_mounted(path) for path in code},
        "own": {"read": acts.read(__file__), "read os": acts.read(os.__file__)},
        "hidden": {path: acts.read(path) for path in hidden},
        "cgroups": {path: acts.open_to_write(path) for path in cgroups},
    }


def _how_mounted(path: str) -> str:
    try:
        return "ro" if os.statvfs(path).f_flag & os.ST_RDONLY else "rw"
    except OSError:
        return ""


@task
def reach_kernel() -> dict[str, Any]:
    """What this process may ask of the kernel, and what the kernel says of it."""
    calls = acts.unusual_calls()
    own = acts.attempt(os.getcwd)
    status = _status()
    rights = {
        "chroot": acts.attempt(lambda: os.chroot("/")),
        "groups": acts.attempt(lambda: os.setgroups([])),
    }
    return {"calls": calls, "own": own, "status": status, "rights": rights}


def _status() -> dict[str, str]:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.rstrip("\n").split(":", 1) for line in file)
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid")
    return {name: fields[name].strip() for name in names if name in fields}


# --- temporary files ------------------------------------------------------------------------


@task
def litter(mark: str, size: int) -> dict[str, Any]:
    """Leave a file of that name wherever temporary files go; write ``size`` bytes to another."""
    folder = tempfile.gettempdir()
    left = {
        each: acts.attempt(partial(_write, f"{each}/{mark}", 64 << 10))
        for each in dict.fromkeys((folder, *acts.TEMPORARY))
    }
    full = f"{folder}/{mark}-full"
    said = acts.attempt(lambda: _write(full, size))
    try:
        written = os.stat(full).st_size
        os.unlink(full)
    except OSError:
        written = 0
    return {"folder": folder, "left": left, "full": said, "written": written}


def _write(path: str, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        piece = bytes(64 << 10)
        for _ in range(size // len(piece)):
            os.write(fd, piece)
    finally:
        os.close(fd)


@task
def look_for(mark: str) -> list[str]:
    """Where a file of that name is."""
    folders = dict.fromkeys((tempfile.gettempdir(), *acts.TEMPORARY))
    return [each for each in folders if os.path.lexists(f"{each}/{mark}")]
