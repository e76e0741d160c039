"""The zygote: a single-threaded process that has imported the task modules and forks sandboxes.

It is exec'd by the manager with an allow-listed environment. It runs no task, keeps no loop and
holds no secret. Its duties: fork on request, reap, relay each exit status, and kill everything
when the manager is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import select
import signal
import sys
import time
import traceback
from _socket import SCM_RIGHTS, SOL_SOCKET, socket
from marshal import dumps, loads
from struct import pack, unpack_from
from typing import Any, NoReturn

from fumehood.common.task import registry
from fumehood.worker.sandbox import child, forkhooks, killer, protocol
from fumehood.worker.sandbox.environment import BIND_NOW

_LOW_FDS = 10  # sandboxes place their own descriptors below this number
_TEXT_MAX = 32 << 10
_IDLE_MS = 250  # milliseconds without a request until orphans are looked for

#: True while task modules are imported: what they call at import must not start sandboxes again.
importing = False


def main(control_fd: int) -> NoReturn:
    """Serve the manager on ``control_fd`` until it closes."""
    os.environ.pop(BIND_NOW, None)
    _reset_signals()
    _reserve_low_descriptors()
    os.set_inheritable(control_fd, False)
    Zygote(socket(fileno=control_fd)).serve()


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

    def __init__(self, control: socket) -> None:
        self._control = control
        self._seats: dict[int, tuple[int, int, int]] = {}  # diag, lifeline, cgroup.procs or -1
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> (pid, serial)
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        self._lifeline = -1
        self._kill_all: int | None = None

    def serve(self) -> NoReturn:
        """Set up by the START frame, then fork and reap for ever."""
        try:
            frame, fds = protocol.receive(self._control, bytearray(protocol.FRAME_MAX), max_fds=2)
            if not frame:
                os._exit(0)
            self._start(protocol.unpack_control(frame)[1], fds)
            control = self._control.fileno()
            while True:
                ready = self._poll.poll(_IDLE_MS)
                for fd, _ in ready:
                    if fd == control:
                        self._on_request()
                    elif fd in self._children:
                        self._on_exit(fd)
                if not ready:
                    self._reap_orphans()
        except (ConnectionError, KeyboardInterrupt):
            self._end()

    # --- starting ---------------------------------------------------------------------------

    def _start(self, config: dict[str, Any], fds: list[int]) -> None:
        self._lifeline = fds[0]
        self._kill_all = fds[1] if len(fds) > 1 else None
        _set_name(config["name"])
        if self._kill_all is None:
            _prepare_subreapers()
        _write_lines_at_once()
        sys.path[:0] = [entry for entry in config["path"] if entry not in sys.path]
        umask, here = config["umask"], config["cwd"]
        forkhooks.hold_back()
        warnings = self._import(config["modules"])
        self._prepare_tasks()
        forkhooks.settle(_thread_count())
        os.umask(umask)
        os.chdir(here)
        _reset_signals()
        _catch_crashes()
        _unbuffer_c_streams()
        gc.collect()
        gc.freeze()
        self._greet(warnings)

    def _greet(self, warnings: list[str]) -> None:
        names = registry.names()
        untrusted = [n for n in names if registry.get(n).options.profile == "untrusted"]
        # Beside the frame, for thousands of names do not fit into one.
        memfd = os.memfd_create("hello", os.MFD_CLOEXEC)
        with open(memfd, "wb") as file:
            file.write(dumps((names, untrusted, warnings)))
            file.flush()
            self._send(protocol.HELLO, fds=[memfd])

    def _import(self, modules: list[str]) -> list[str]:
        """Import the task modules; what they did that a forking process should not do."""
        global importing  # noqa: PLW0603 - one zygote to a process
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
                    f"importing {name} started {now - threads} thread(s): locks held at "
                    "a fork stay locked in every sandbox; start threads inside the task"
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

    # After each fork, all that this process touches is copied page by page, as in a sandbox: here,
    # too, the common path makes few calls and few objects.

    def _on_request(self) -> None:
        frame, ancillary, _, _ = self._control.recvmsg(
            protocol.CONTROL_MAX, protocol.THREE_FDS, protocol.CLOEXEC
        )
        if not frame:
            self._end()
        code, serial, seat = loads(frame)  # noqa: S302 - from the manager
        fds = ancillary[0][2]
        if code == protocol.SEAT:
            procs = unpack_from("i", fds, 8)[0] if len(fds) > 8 else -1
            self._seats[seat] = (*unpack_from("2i", fds), procs)
            return
        job, stdout, stderr = unpack_from("3i", fds)
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
            answer = dumps((protocol.FORKED, serial, pid))
            self._control.sendmsg((answer,), ((SOL_SOCKET, SCM_RIGHTS, pack("i", pidfd)),))
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
        cpu = usage.ru_utime + usage.ru_stime
        self._control.send(dumps((protocol.EXITED, serial, status, cpu, leaked)))

    def _reap_orphans(self) -> None:
        """Reap what the cgroup's kill left to this subreaper, and nothing with its own pidfd."""
        own = {pid for pid, _ in self._children.values()}
        for pid in killer.children_of(os.getpid()) - own:
            os.waitpid(pid, os.WNOHANG)

    def _send(self, code: int, *parts: Any, fds: list[int] | None = None) -> None:
        protocol.send(self._control, dumps((code, *parts)), fds or [])

    def _end(self) -> NoReturn:
        """The manager is gone, or needs this zygote no more: its processes may not outlive it."""
        # The tree is the manager's, with the sandboxes of other zygotes in it.
        if self._kill_all is not None and self._children and self._has_no_manager():
            with contextlib.suppress(OSError):  # somebody removed the cgroup
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

    def _has_no_manager(self) -> bool:
        poll = select.poll()
        poll.register(self._lifeline, 0)  # which leaves the hang-up
        return bool(poll.poll(100))  # its sockets may be closed before its pipes are


def select_ready(pidfds: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """The pidfds whose process has ended, waiting up to a tenth of a second for one."""
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    return poll.poll(100)


def _set_name(name: str) -> None:
    """The name that ``ps`` and ``top`` show for this process and its sandboxes."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)


def _prepare_subreapers() -> None:
    """Let sandboxes adopt their own orphans. Costs each fork a little: only without cgroups."""
    from fumehood.worker.sandbox import kernel

    child.become_subreaper = kernel.become_subreaper


def _unbuffer_c_streams() -> None:
    """Keep what C code prints out of buffers that a kill would lose, where C code is about."""
    if "ctypes" in sys.modules:
        from fumehood.worker.sandbox import kernel

        kernel.unbuffer_c_streams()


def _catch_crashes() -> None:
    """Have every sandbox write its Python stack to its own DIAG: handlers are inherited."""
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
