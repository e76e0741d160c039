"""The manager's view of one zygote: exec it, learn its tasks, ask for forks, hear of exits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fumehood.common.errors import SandboxUnavailable
from fumehood.worker.sandbox import boot, kernel, protocol
from fumehood.worker.sandbox.confinement import Config, Report
from fumehood.worker.sandbox.declared import Declared
from fumehood.worker.sandbox.hostpid import host_pid
from fumehood.worker.sandbox.poller import Poller
from fumehood.worker.sandbox.process import SandboxProcess
from fumehood.worker.sandbox.seat import Seat


@dataclass(frozen=True, slots=True)
class ZygoteConfig:
    """What a zygote is started with."""

    modules: Sequence[str]
    env: Mapping[str, str]
    lifeline: int
    kill_all: int | None  # cgroup.kill of the manager's tree
    has_cgroups: bool
    start_timeout: float  # seconds until the modules must be imported
    disabled: frozenset[str] = frozenset()  # mechanisms not to use
    confinement: Config | None = None  # for a zygote in namespaces of its own
    watch: bool = True  # whether to tell which files hold the code
    path: Sequence[str] = field(
        default_factory=lambda: [entry or os.getcwd() for entry in sys.path]
    )


class ZygoteProcess:
    """One exec'd zygote. ``on_lost`` is called once, when it is gone without having been asked."""

    def __init__(
        self, config: ZygoteConfig, poller: Poller, on_lost: Callable[[ZygoteProcess], None]
    ) -> None:
        self.sandboxes: dict[int, SandboxProcess] = {}
        self.tasks: dict[str, Declared] = {}
        self.code: dict[str, Any] = {}  # files of the code that it runs, as CodeWatch wants them
        self.report: Report | None = None  # which namespaces it has
        self.warnings: list[tuple[bool, str]] = []  # whether it matters, and what it is
        self.adopted = False  # whether it was made the current one, once
        self.start_error: SandboxUnavailable | None = None
        self._poller = poller
        self._on_lost = on_lost
        self._seats: set[int] = set()
        #: Whether it reports how sandboxes ended; else the kernel does.
        self.relays = not config.has_cgroups or "pidfd" in config.disabled
        self._confined = config.confinement is not None
        self._buffer = bytearray(protocol.FRAME_MAX)
        self._oldest_debt, self._looks = 0, 0
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = _launch(config, theirs.fileno())
        except BaseException:
            self._control.close()
            raise
        finally:
            theirs.close()
        self._control.setblocking(False)  # should it stop reading, then it alone stands still
        poller.add(self._control.fileno(), self._on_frame)
        with contextlib.suppress(OSError):  # it has died already, and will be lost
            self._greet(config)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can still be asked for sandboxes."""
        return self._control.fileno() >= 0

    @property
    def greeted(self) -> bool:
        """Whether it has told how importing the modules went."""
        return self._hello.done()

    def _greet(self, config: ZygoteConfig) -> None:
        start = {
            "name": "fumehood-zygote",
            "path": list(config.path),
            "modules": list(config.modules),
            "umask": _umask(),
            "cwd": os.getcwd(),
            "relays": self.relays,
            "subreapers": not config.has_cgroups,
            "joins_late": not self._confined,
            "disabled": list(config.disabled),
            "watch": config.watch,
        }
        fds = [config.lifeline]
        if config.kill_all is not None and not self._confined:  # whose PID namespace does the same
            fds.append(config.kill_all)
        protocol.send(self._control, protocol.pack(protocol.START, start), fds)

    async def ready(self, timeout: float) -> None:
        """Wait until its modules are imported. Else raises ``SandboxUnavailable`` and ends it."""
        try:
            await asyncio.wait_for(asyncio.shield(self._hello), timeout)
        except TimeoutError:
            self.close(kill=True)
            raise SandboxUnavailable(
                f"importing the task modules took more than sandbox_start_timeout, {timeout:g} s"
            ) from None
        if self.start_error is not None:
            self.close(kill=True)
            raise self.start_error

    def fork(self, sandbox: SandboxProcess) -> None:
        """Ask for a sandbox; ``sandbox.on_forked`` is called when it is there."""
        self.sandboxes[sandbox.serial] = sandbox
        sandbox.zygote = self
        try:
            if sandbox.seat.number not in self._seats:
                self._introduce(sandbox.seat)
            frame, fds = sandbox.fork_request()
            protocol.send(self._control, frame, fds)
        except OSError:
            return  # it is gone: its loss is reported for all of its sandboxes
        finally:
            sandbox.close_their_fds()

    def _introduce(self, seat: Seat) -> None:
        protocol.send(self._control, protocol.pack(protocol.SEAT, 0, seat.number, 0), seat.fds())
        self._seats.add(seat.number)

    def looks_in_vain(self) -> int:
        """How many calls of this one in a row found it owing the same answer.

        It owes one for each sandbox that it was asked to fork, and for each that has ended.
        """
        owed = next(
            (
                s
                for s, box in self.sandboxes.items()
                if not box.ending.pid or (self.relays and box.ending.is_dead())
            ),
            0,
        )
        self._looks = self._looks + 1 if owed and owed == self._oldest_debt else 0
        self._oldest_debt = owed
        return self._looks

    def _on_frame(self) -> None:
        try:
            frame, fds = protocol.receive(self._control, self._buffer, max_fds=2)
        except BlockingIOError:
            return
        except OSError:
            self._lose()
            return
        if not frame:
            self._lose()
            return
        code, *parts = protocol.unpack_control(frame)
        self._dispatch(code, parts, fds)

    def _dispatch(self, code: int, parts: list[Any], fds: list[int]) -> None:
        if code == protocol.EXITED:
            serial, status, cpu, leaked = parts
            sandbox = self.sandboxes.get(serial)  # or gone already, for its end was seen here
            if sandbox is not None:
                sandbox.ending.on_exited(status, cpu, leaked)
        elif code == protocol.FORKED:
            serial, pid = parts
            if self._confined:
                pid = _host_pid(fds[0])  # what it calls itself is a number of its own namespace
            self.sandboxes[serial].on_forked(pid, fds[0], watched=not self.relays)
        elif code == protocol.FORK_FAILED:
            serial, number, text = parts
            self.sandboxes.pop(serial).on_fork_failed(number, text)
        elif code == protocol.HELLO:
            self._read_hello(fds[0])
            self._settle_relay(fds[1])
            self._greeted()
        elif code == protocol.HELLO_FAILED:
            module, why, trace = parts
            refused = boot.failure_of(parts)
            if refused is not None:
                self.start_error = SandboxUnavailable(str(refused))
            else:
                self.start_error = SandboxUnavailable(f"cannot import {module}: {why}")
                self.start_error.add_note(trace)
            self._greeted()

    def _read_hello(self, memfd: int) -> None:
        data = os.pread(memfd, os.fstat(memfd).st_size, 0)
        os.close(memfd)
        declared, warnings, self.code, self.report = protocol.unpack_control(data)
        self.tasks = {name: Declared(*facts) for name, facts in declared.items()}
        self.warnings = list(warnings)

    def _settle_relay(self, probe: int) -> None:
        """Whether the kernel tells of ends, as of the probe's; else the zygote is to do so."""
        try:
            self.relays = self.relays or kernel.end_of(probe, 1.0) != protocol.PROBE_EXIT << 8
        finally:
            os.close(probe)
        if self.relays:
            with contextlib.suppress(OSError):
                protocol.send(self._control, protocol.pack(protocol.RELAY, 0, 0, 0))

    def _greeted(self) -> None:
        if not self._hello.done():
            self._hello.set_result(None)

    def _lose(self) -> None:
        self.lose("the zygote ended before it had imported the task modules")

    def lose(self, why: str) -> None:
        """Kill it, and hand its sandboxes over to the kernel's own reports."""
        if self.start_error is None and not self.greeted:
            self.start_error = SandboxUnavailable(why)
        self.close(kill=True)
        lost, self.sandboxes = list(self.sandboxes.values()), {}
        self._on_lost(self)  # first, or it would be asked for more
        for sandbox in lost:
            sandbox.on_zygote_lost()

    def close(self, *, kill: bool = False) -> None:
        """Let it go: it kills its sandboxes and ends when its socket closes. Idempotent."""
        if self.alive:
            self._poller.remove(self._control.fileno())
            self._control.close()
        if kill:
            self._kill()
        if self.start_error is None and not self.greeted:
            self.start_error = SandboxUnavailable("the sandbox manager was stopped")
        self._greeted()

    def disown(self) -> None:
        """In a fork of the manager's process: close the copy of the control socket."""
        if self.alive:
            os.close(self._control.detach())

    def _kill(self) -> None:
        # What the task modules have started is of its group; sandboxes have groups of their own.
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()

    def reap(self, timeout: float) -> None:
        """Wait for its end after ``close``, at most ``timeout`` seconds, then kill it."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()


def _launch(config: ZygoteConfig, fd: int) -> subprocess.Popen[bytes]:
    command = boot.command(fd, guarded="landlock" not in config.disabled)
    if config.confinement is not None:
        command = boot.confined_command(fd, config.confinement)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", command],
            env=dict(config.env),
            stdin=subprocess.DEVNULL,
            pass_fds=[fd],
            start_new_session=True,
        )
    except OSError as exc:
        raise SandboxUnavailable(f"cannot start {sys.executable}: {exc.strerror}") from exc
    # From outside, for a zygote that loads no ``resource`` forks faster. It waits for its START.
    resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
    return process


def _host_pid(pidfd: int) -> int:
    try:
        return host_pid(pidfd)
    except ProcessLookupError:  # it has ended: its pidfd will tell how
        return 0


def _umask() -> int:
    # There is no way to read it without setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
