"""The zygote: a single-threaded process that has imported the task modules and forks sandboxes.

It is exec'd by the manager with an allow-listed environment. It runs no task, keeps no loop and
holds no secret. Its duties: fork on request, reap, relay each exit status, and kill everything
when the manager is gone.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from fumehood.common.task import registry
from fumehood.worker.sandbox import child, kernel, killer, protocol
from fumehood.worker.sandbox.environment import BIND_NOW

_LOW_FDS = 10  # sandboxes place their own descriptors below this number
_TEXT_MAX = 32 << 10

#: True while task modules are imported: what they call at import must not start sandboxes again.
importing = False


def main(control_fd: int) -> NoReturn:
    """Serve the manager on ``control_fd`` until it closes."""
    os.environ.pop(BIND_NOW, None)
    _reset_signals()
    _reserve_low_descriptors()
    os.set_inheritable(control_fd, False)
    Zygote(socket.socket(fileno=control_fd)).serve()


def _reset_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _reserve_low_descriptors() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    while null < _LOW_FDS:
        null = os.dup(null)
    os.close(null)


class Zygote:
    """One control socket, the seats that sandboxes sit in, and the children alive."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._buffer = bytearray(protocol.FRAME_MAX)
        self._seats: dict[int, tuple[int, int, int]] = {}  # diag, lifeline, cgroup.procs or -1
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> (pid, serial)
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        self._lifeline = -1
        self._kill_all: int | None = None

    def serve(self) -> NoReturn:
        """Set up by the START frame, then fork and reap for ever."""
        try:
            frame, fds = protocol.receive(self._control, self._buffer, max_fds=2)
            if not frame:
                os._exit(0)
            self._start(protocol.unpack(frame)[1], fds)
            while True:
                for fd, _ in self._poll.poll():
                    if fd == self._control.fileno():
                        self._on_request()
                    elif fd in self._children:
                        self._on_exit(fd)
        except (ConnectionError, KeyboardInterrupt):
            self._end()

    # --- starting ---------------------------------------------------------------------------

    def _start(self, config: dict[str, Any], fds: list[int]) -> None:
        self._lifeline = fds[0]
        self._kill_all = fds[1] if len(fds) > 1 else None
        kernel.set_name(config["name"])
        kernel.become_subreaper()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _write_lines_at_once()
        sys.path[:0] = [entry for entry in config["path"] if entry not in sys.path]
        umask, here = config["umask"], config["cwd"]
        warnings = self._import(config["modules"])
        os.umask(umask)
        os.chdir(here)
        _reset_signals()
        _catch_crashes()
        self._prepare_tasks()
        gc.collect()
        gc.freeze()
        self._send(protocol.HELLO, registry.names(), warnings)

    def _import(self, modules: list[str]) -> list[str]:
        """Import the task modules; what they did that a forking process should not do."""
        global importing
        importing = True
        warnings: list[str] = []
        threads = _thread_count()
        for name in modules:
            try:
                importlib.import_module(name)
            except BaseException as exc:
                text = traceback.format_exc()[-_TEXT_MAX:]
                self._send(protocol.HELLO_FAILED, name, f"{type(exc).__name__}: {exc}"[:2000], text)
                os._exit(1)
            now = _thread_count()
            if now > threads:
                warnings.append(
                    f"importing {name} started {now - threads} thread(s): locks that they hold at a "
                    "fork stay locked in every sandbox; start threads inside the task"
                )
            threads = now
        importing = False
        return warnings

    def _prepare_tasks(self) -> None:
        """Pay before forking for what every sandbox would pay after it."""
        for name in registry.names():
            task = registry.get(name)
            if task.is_async:
                importlib.import_module("asyncio")
            elif task.plan.is_empty:
                child.plain_tasks[name] = task.function

    # --- serving ----------------------------------------------------------------------------

    def _on_request(self) -> None:
        frame, fds = protocol.receive(self._control, self._buffer, max_fds=3)
        if not frame:
            self._end()
        code, *parts = protocol.unpack(frame)
        if code == protocol.FORK:
            self._fork(parts[0], parts[1], fds)
        elif code == protocol.SEAT:
            self._seats[parts[0]] = (fds[0], fds[1], fds[2] if len(fds) > 2 else -1)

    def _fork(self, serial: int, seat: int, fds: list[int]) -> None:
        job, stdout, stderr = fds
        diag, lifeline, procs = self._seats[seat]
        try:
            pid = os.fork()
        except OSError as exc:
            self._send(protocol.FORK_FAILED, serial, exc.errno, exc.strerror)
        else:
            if pid == 0:
                child.live(job, stdout, stderr, diag, lifeline, procs)
            pidfd = os.pidfd_open(pid)
            self._children[pidfd] = (pid, serial)
            self._poll.register(pidfd, select.POLLIN)
            self._send(protocol.FORKED, serial, pid, fds=[pidfd])
        os.close(job)
        os.close(stdout)
        os.close(stderr)

    def _on_exit(self, pidfd: int) -> None:
        pid, serial = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        leaked = 0
        if self._kill_all is None:
            leaked = killer.kill_strays({pid for pid, _ in self._children.values()})
        else:
            _reap_orphans(self._children)
        self._send(protocol.EXITED, serial, status, usage.ru_utime + usage.ru_stime, leaked)

    def _send(self, code: int, *parts: Any, fds: list[int] | None = None) -> None:
        protocol.send(self._control, protocol.pack(code, *parts), fds or [])

    def _end(self) -> NoReturn:
        """The manager is gone: no process may outlive it."""
        if self._kill_all is not None:
            os.write(self._kill_all, b"1")
        for pid, _ in self._children.values():
            killer.kill_tree(pid)
        deadline = time.monotonic() + 5.0
        while self._children and time.monotonic() < deadline:
            for fd, _ in select_ready(self._children):
                pid, _ = self._children.pop(fd)
                os.waitpid(pid, 0)
        killer.kill_strays(set())
        os._exit(0)


def select_ready(pidfds: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """The pidfds whose process has ended, waiting up to a tenth of a second for one."""
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    return poll.poll(100)


def _reap_orphans(children: dict[int, tuple[int, int]]) -> None:
    """Reap what the cgroup's kill left to this subreaper, and nothing that has its own pidfd."""
    own = {pid for pid, _ in children.values()}
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or info.si_pid in own:
            return  # the next exit of a sandbox comes back here
        os.waitpid(info.si_pid, 0)


def _catch_crashes() -> None:
    """Have every sandbox write its Python stack to its own DIAG descriptor: handlers are inherited."""
    faulthandler.enable(child.DIAG, all_threads=True)
    faulthandler.register(child.DUMP_SIGNAL, child.DIAG, all_threads=True, chain=False)


def _thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


def _write_lines_at_once() -> None:
    # A pipe would make stdout block-buffered, and a killed task's last lines would be lost.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    kernel.unbuffer_c_streams()
