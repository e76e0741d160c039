"""A stand-in for an untrusted zygote: in real namespaces, it runs probes instead of tasks.

The test holds a ``StandIn`` and its ``Job``s; ``start`` and ``serve`` run in the processes that it
starts. One socket leads to the stand-in, one more to each job.
"""

from __future__ import annotations

import ctypes
import gc
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from fumehood.worker.sandbox import boot, jobspace, mounts, protocol
from fumehood.worker.sandbox.confinement import Config, NamespaceError, Report, take_report
from fumehood.worker.sandbox.hostpid import host_pid
from fumehood.worker.sandbox.slotuid import START
from support import namespace_probes

TESTS = str(Path(__file__).parents[1])
SLOTS = 4
UIDS = START + 7
NOBODY = 65534
_WAIT_MAX = 30.0  # seconds for whatever has to happen
_ALL_IDS = (1 << 32) - 1


def make_config(disabled: Iterable[str] = (), **more: Any) -> Config:
    """What the tests' zygotes are confined with."""
    config: dict[str, Any] = {
        "path": [TESTS, *(entry for entry in sys.path if entry)],
        "cwd": TESTS,
        "show": [],
        "hide": [],
        "uids": UIDS,
        "slots": SLOTS,
        "disabled": list(disabled),
    }
    confinement: Any = {**config, **more}
    made: Config = confinement
    return made


# --- what the test holds --------------------------------------------------------------------


class ProbeError(Exception):
    """What a probe raised: the name of its type, its errno, its text."""

    def __init__(self, kind: str, number: int | None, text: str) -> None:
        super().__init__(kind, number, text)
        self.kind, self.errno = kind, number


class _Peer:
    """Probes are called through a socket."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        channel.settimeout(_WAIT_MAX)

    def ask(self, request: tuple[Any, ...], fds: Iterable[int] = ()) -> tuple[Any, list[int]]:
        socket.send_fds(self.channel, [marshal.dumps(request)], list(fds))
        frame, received, _, _ = socket.recv_fds(self.channel, protocol.FRAME_MAX, 1)
        if not frame:
            raise EOFError("it is gone")
        done, value = _read(frame)
        if not done:
            raise ProbeError(*value)
        return value, received

    def call(self, probe: str, *args: Any) -> Any:
        """The value of a probe; raises ``ProbeError``."""
        return self.ask(("call", probe, args))[0]

    def tell(self, probe: str) -> None:
        """Have a probe called, and do not wait for it."""
        self.channel.send(marshal.dumps(("call", probe, ())))


class Job(_Peer):
    """A process forked by the stand-in, after ``enter_job``."""

    def __init__(self, channel: socket.socket, pid: int, pidfd: int) -> None:
        super().__init__(channel)
        self.pid, self.pidfd = pid, pidfd
        self.host_pid = host_pid(pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        wait_ended(self.pidfd)
        os.close(self.pidfd)


class StandIn(_Peer):
    """An outer process, and the stand-in in it. ``report`` is what boot has achieved.

    ``uid``: as which user. ``refused``: the kind of namespaces that the kernel is to refuse.
    """

    report: Report

    def __init__(self, config: Config, uid: int = 0, refused: str = "") -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(ours)
        arguments = f"{theirs.fileno()}, {config!r}, {uid}, {refused!r}"
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"{_START}start({arguments})"],
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "PYTHONPATH": TESTS,
                    "PYTHONDONTWRITEBYTECODE": "1",
                    protocol.BIND_NOW: "1",
                },
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                extra_groups=[4],  # which nobody in there is to be in
            )
        finally:
            theirs.close()

    def __enter__(self) -> Self:
        try:
            self.report = self._greeting()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.channel.close()
        self.process.wait(_WAIT_MAX)

    def _greeting(self) -> Report:
        frame = self.channel.recv(protocol.FRAME_MAX)
        if not frame:
            raise EOFError("it ended before it was ready")
        code, *parts = _read(frame)
        if code == protocol.HELLO_FAILED:
            failure = boot.failure_of(parts)
            assert failure is not None, parts
            raise failure
        report: Report = parts[0]
        return report

    def job(self, slot: int = 1, tmp: int = 1 << 20, inodes: int = 100) -> Job:
        """A new job. Raises ``ProbeError`` for what ``enter_job`` raised."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid, (pidfd,) = self.ask(("job", slot, tmp, inodes), [theirs.fileno()])
        finally:
            theirs.close()
        job = Job(ours, pid, pidfd)
        try:
            job.call("nothing")  # it has entered
        except BaseException:
            job.__exit__()
            raise
        return job


def _read(frame: bytes) -> Any:
    return marshal.loads(frame)  # noqa: S302 - between processes of one test


def wait_ended(pidfd: int) -> None:
    """Wait until a pidfd's process has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(_WAIT_MAX * 1000), "it did not end"


# --- what runs in there ---------------------------------------------------------------------

_START = "from support.namespace_zygote import start; "


def start(control_fd: int, config: Config, uid: int, refused: str) -> NoReturn:
    """Be what the manager starts: confine, and exec the stand-in where the zygote would be."""
    if uid:
        _become_ordinary(uid)
        # For a process whose id was changed, its files in /proc stay root's until it execs.
        code = f"{_START}start({control_fd}, {config!r}, 0, {refused!r})"
        os.execv(sys.executable, [sys.executable, "-c", code])  # noqa: S606
    if refused:
        _refuse(refused)
    boot.COMMAND = "from support.namespace_zygote import serve; serve({fd})"
    boot.confined(control_fd, config)


def _become_ordinary(uid: int) -> None:
    """An ordinary user with a usable Python, wherever root keeps it.

    In a mount namespace of its own, the folders on the way that only root may enter are replaced.
    """
    mounts.unshare(mounts.NEWNS)
    mounts.make_private()
    os.umask(0o022)
    for path in (sys.base_prefix, sys.prefix, str(Path(TESTS).parent)):
        closed = [each for each in (path, *map(str, Path(path).parents)) if not _is_open(each)]
        if closed:
            kept = os.open(path, os.O_PATH | os.O_CLOEXEC)
            mounts.mount(b"tmpfs", os.fsencode(closed[-1]), 0, b"mode=0755")
            Path(path).mkdir(parents=True, exist_ok=True)
            mounts.bind(f"/proc/self/fd/{kept}", path)
            os.close(kept)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _is_open(path: str) -> bool:
    return bool(Path(path).stat().st_mode & 0o001)


def _refuse(kind: str) -> None:
    """Have the kernel refuse a kind of namespaces: by a limit, in a user namespace made for it."""
    uid = os.getuid()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        ours.recv(1)
        if uid:
            Path(f"/proc/{pid}/setgroups").write_text("deny")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"{uid} {uid} {1 if uid else _ALL_IDS}")
        ours.send(b"1")
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    mounts.unshare(mounts.NEWUSER)
    theirs.send(b"1")
    theirs.recv(1)
    Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")


def serve(control_fd: int) -> NoReturn:
    """The stand-in for ``zygote.main``."""
    report = take_report(os.environ)
    assert report is not None
    jobspace.prepare(report)
    channel = socket.socket(fileno=control_fd)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reaped by the kernel, as the zygote's are
    channel.send(protocol.pack(protocol.HELLO, dict(report)))
    while True:
        frame, fds, _, _ = socket.recv_fds(channel, protocol.FRAME_MAX, 1)
        if not frame:
            os._exit(0)
        kind, *parts = _read(frame)
        if kind == "call":
            _answer(channel, *parts)
            continue
        pid = os.fork()
        if not pid:
            channel.close()
            _live(socket.socket(fileno=fds[0]), *parts)
        os.close(fds[0])
        pidfd = os.pidfd_open(pid)
        socket.send_fds(channel, [marshal.dumps((True, pid))], [pidfd])
        os.close(pidfd)


def _live(channel: socket.socket, slot: int, tmp: int, inodes: int) -> NoReturn:
    failure: BaseException | None = None
    try:
        try:
            jobspace.enter_job(slot, tmp, inodes)
            drop_capabilities()
        except Exception as exc:  # noqa: BLE001 - the test is told
            failure = exc
        while frame := channel.recv(protocol.FRAME_MAX):
            _, probe, args = _read(frame)
            if failure is None:
                _answer(channel, probe, args)
            else:
                channel.send(marshal.dumps((False, _described(failure))))
    finally:
        os._exit(0)


def _answer(channel: socket.socket, probe: str, args: tuple[Any, ...]) -> None:
    try:
        answer = (True, getattr(namespace_probes, probe)(*args))
    except Exception as exc:  # noqa: BLE001 - the test is told
        answer = (False, _described(exc))
    channel.send(marshal.dumps(answer))


def _described(exc: BaseException) -> tuple[str, int | None, str]:
    stage = f"{exc.stage}: " if isinstance(exc, NamespaceError) else ""
    return type(exc).__name__, getattr(exc, "errno", None), stage + str(exc)


def drop_capabilities() -> None:
    """What the sandbox's child does by its own means: no rights of any kind are left."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")
