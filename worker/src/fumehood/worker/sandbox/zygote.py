"""The zygote: a single-threaded process that has imported the task modules and forks sandboxes.

It is exec'd by the manager with an allow-listed environment. It runs no task, keeps no loop and
holds no secret. Its duties: fork on request, reap, relay each exit status, and kill everything
when the manager is gone.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
import time
from _socket import SCM_RIGHTS, SOL_SOCKET, socket
from _struct import pack, unpack_from
from importlib import import_module
from marshal import dumps, loads

from fumehood.common.task import registry
from fumehood.worker.sandbox import census, child, confinement, forkhooks, killer, protocol, signals
from fumehood.worker.sandbox.codewatch import Sources
from fumehood.worker.sandbox.protocol import BIND_NOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_LOW_FDS = 10  # sandboxes place their own descriptors below this number
_TEXT_MAX = 32 << 10
_RANDOM = {"random", "numpy.random", "torch", "tensorflow"}  # modules that hold random state
_POLLIN = 1  # of poll(2)
_IDLE_MS = 250  # milliseconds without a request until orphans are looked for

#: True while task modules are imported: what they call at import must not start sandboxes again.
importing = False


def main(control_fd: int) -> NoReturn:
    """Serve the manager on ``control_fd`` until it closes."""
    os.environ.pop(BIND_NOW, None)
    report = confinement.take_report(os.environ)
    _reset_signals()
    _reserve_low_descriptors()
    os.set_inheritable(control_fd, False)
    Zygote(socket(fileno=control_fd), report).serve()


def _reset_signals() -> None:
    signals.pthread_sigmask(signals.SIG_SETMASK, ())
    for number in signals.valid_signals() - {signals.SIGKILL, signals.SIGSTOP}:
        signals.signal(number, signals.SIG_DFL)
    signals.signal(signals.SIGPIPE, signals.SIG_IGN)
    signals.signal(signals.SIGINT, signals.default_int_handler)


def _reserve_low_descriptors() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    while null < _LOW_FDS:
        null = os.dup(null)
    os.close(null)


class Zygote:
    """One control socket, the seats that sandboxes sit in, and the children alive."""

    def __init__(self, control: socket, report: confinement.Report | None) -> None:
        self._report = report
        self._control = control
        self._seats: dict[int, tuple[int, ...]] = {}  # diag, lifeline, files of cgroups to join
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> (pid, serial)
        self._lifeline = -1
        self._kill_all: int | None = None
        self._watched: Any = None  # what a zygote that relays polls
        self._relays = False  # whether exit statuses are told by this process, or by the kernel

    def serve(self) -> NoReturn:
        """Set up by the START frame, then fork and reap for ever."""
        try:
            frame, fds = protocol.receive(self._control, bytearray(protocol.FRAME_MAX), max_fds=2)
            if not frame:
                os._exit(0)
            self._start(protocol.unpack_control(frame)[1], fds)
            while not self._relays:
                self._on_request()
            self._relay()
        except (ConnectionError, KeyboardInterrupt):
            self._end()

    # --- starting ---------------------------------------------------------------------------

    def _relay(self) -> NoReturn:
        """Serve requests and ends alike: where the kernel does not tell others of an end."""
        signals.signal(signals.SIGCHLD, signals.SIG_DFL)
        from select import poll  # a shared library: only zygotes that relay load it

        self._watched = watched = poll()
        control = self._control.fileno()
        watched.register(control, _POLLIN)
        while True:
            ready = watched.poll(_IDLE_MS)
            for fd, _ in ready:
                if fd == control:
                    self._on_request()
                elif fd in self._children:
                    self._on_exit(fd)
            if not ready:
                self._reap_orphans()

    def _start(self, config: dict[str, Any], fds: list[int]) -> None:
        self._lifeline = fds[0]
        self._kill_all = fds[1] if len(fds) > 1 else None
        self._relays = config["relays"]
        _set_name(config["name"])
        _die_first()
        child.joins_late = config["joins_late"]
        if config["subreapers"]:
            _prepare_subreapers()
        _write_lines_at_once()
        sys.path[:0] = [entry for entry in config["path"] if entry not in sys.path]
        here = config["cwd"] if self._report is None else self._report["cwd"]
        os.umask(config["umask"])
        os.chdir(here)
        if self._report is not None:
            from fumehood.worker.sandbox import lockdown

            lockdown.confine_zygote(config["disabled"])
        sources = Sources()
        forkhooks.hold_back()
        with census.Census(sources.note) as found:
            self._import(config["modules"])
        found.restore()
        self._prepare_tasks()
        forkhooks.settle(_thread_count())
        os.umask(config["umask"])
        os.chdir(here)
        _reset_signals()
        _catch_crashes()
        _unbuffer_c_streams()
        child.rehearse()
        gc.collect()
        warnings = [(finding.is_serious, str(finding)) for finding in found.findings]
        warnings += [(True, text) for text in self._prepare_random(found.modules)]
        watched = sources.watched(config["modules"]) if config["watch"] else {}
        self._prepare_lockdown(config["disabled"])
        gc.freeze()
        # Children that nobody waits for are reaped by the kernel, which tells the manager of them.
        signals.signal(signals.SIGCHLD, signals.SIG_IGN)
        self._greet((_declared(), warnings, watched, self._report))

    def _greet(self, said: tuple[Any, ...]) -> None:
        # Beside the frame, for thousands of names do not fit into one.
        memfd = os.memfd_create("hello", os.MFD_CLOEXEC)
        with open(memfd, "wb") as file:
            file.write(dumps(said))
            file.flush()
            self._send(protocol.HELLO, fds=[memfd, _probe()])

    def _import(self, modules: list[str]) -> None:
        """Import the task modules; one that cannot be is told of, and ends this process."""
        global importing  # noqa: PLW0603 - one zygote to a process
        importing = True
        for name in modules:
            try:
                import_module(name)
            except BaseException as exc:
                from traceback import format_exc

                text = format_exc()[-_TEXT_MAX:]
                self._send(protocol.HELLO_FAILED, name, f"{type(exc).__name__}: {exc}"[:2000], text)
                os._exit(1)
        importing = False

    def _prepare_tasks(self) -> None:
        """Pay before forking for what every sandbox would pay after it."""
        for name in registry.names():
            task = registry.get(name)
            if task.is_async:
                import_module("asyncio")
            elif task.takes_plain_values:
                child.plain_tasks[name] = task.function

    def _prepare_random(self, modules: list[str]) -> list[str]:
        """Have random state that forks would share made anew in each; what cannot be."""
        if not _RANDOM & set(sys.modules):
            return []
        from fumehood.worker.sandbox import reseed

        plan = reseed.survey(modules)
        if not plan.is_empty:
            child.reseed = plan.apply
        return plan.warnings

    def _prepare_lockdown(self, disabled: list[str]) -> None:
        child.failing = next((n[5:] for n in disabled if n.startswith("fail:")), "")
        if self._report is None:
            return
        from fumehood.worker.sandbox import lockdown

        lockdown.failing = child.failing
        lockdown.prepare(self._report, disabled)
        child.lock = lockdown.lock

    # --- serving ----------------------------------------------------------------------------

    # After each fork, all that this process touches is copied page by page, as in a sandbox: here,
    # too, the common path makes few calls and few objects.

    def _on_request(self) -> None:
        frame, ancillary, _, _ = self._control.recvmsg(
            protocol.CONTROL_MAX, protocol.MANY_FDS, protocol.CLOEXEC
        )
        if not frame:
            self._end()
        code, serial, seat, tmp = loads(frame)  # noqa: S302 - from the manager
        if code == protocol.RELAY:
            self._relays = True
            return
        fds = ancillary[0][2]
        if code == protocol.SEAT:
            self._seats[seat] = unpack_from(f"{len(fds) // 4}i", fds)
            return
        job, stdout, stderr = unpack_from("3i", fds)
        kept = self._seats[seat]
        try:
            pid = os.fork()
        except OSError as exc:
            self._send(protocol.FORK_FAILED, serial, exc.errno, exc.strerror)
        else:
            if pid == 0:
                child.live(job, stdout, stderr, kept, seat, tmp)
            pidfd = os.pidfd_open(pid)
            answer = dumps((protocol.FORKED, serial, pid))
            self._control.sendmsg((answer,), ((SOL_SOCKET, SCM_RIGHTS, pack("i", pidfd)),))
            if self._relays:
                self._children[pidfd] = (pid, serial)
                self._watched.register(pidfd, _POLLIN)
            else:
                os.close(pidfd)
        os.close(job)
        os.close(stdout)
        os.close(stderr)

    def _on_exit(self, pidfd: int) -> None:
        pid, serial = self._children.pop(pidfd)
        self._watched.unregister(pidfd)
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
            try:
                os.write(self._kill_all, b"1")
            except OSError:  # somebody removed the cgroup
                pass
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
        from select import poll

        closed = poll()
        closed.register(self._lifeline, 0)  # which leaves the hang-up
        return bool(closed.poll(100))  # its sockets may be closed before its pipes are


def select_ready(pidfds: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """The pidfds whose process has ended, waiting up to a tenth of a second for one."""
    from select import poll

    ended = poll()
    for fd in pidfds:
        ended.register(fd, _POLLIN)
    return ended.poll(100)


def _declared() -> dict[str, tuple[Any, ...]]:
    """What the tasks say of themselves, as plain data: profile, limits, timeouts."""
    found: dict[str, tuple[Any, ...]] = {}
    for name in registry.names():
        options = registry.get(name).options
        limits = options.limits.to_wire()
        found[name] = (options.profile, limits, options.timeout, options.soft_timeout)
    return found


def _probe() -> int:
    """A pidfd of a child that ends at once, for the manager to learn how from the kernel."""
    waits, ends = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ends)
        os.read(waits, 1)  # or it could be gone before there is a pidfd
        os._exit(protocol.PROBE_EXIT)
    pidfd = os.pidfd_open(pid)
    os.close(waits)
    os.close(ends)
    try:
        os.waitpid(pid, 0)  # or it could be taken for something that the first job has left
    except ChildProcessError:  # the kernel has reaped it
        pass
    return pidfd


def _set_name(name: str) -> None:
    """The name that ``ps`` and ``top`` show for this process and its sandboxes."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(name)
    except OSError:
        pass


def _die_first() -> None:
    """Where the host runs out of memory, sandboxes are to go before nodes.

    Set once, for forks have it too: of those that the kernel may choose from, it takes the largest,
    and a zygote is small.
    """
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


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
