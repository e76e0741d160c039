"""The outer process of a zygote's two: it starts the inner one, maps its ids, and waits.

It is the one that the manager has started and knows. What the inner one reports before it becomes
the zygote goes through a link, a socket that its exec closes.
"""

from __future__ import annotations

import os
import select
import signal
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from marshal import dumps, loads
from typing import NoReturn

from fumehood.worker.sandbox.confinement import NamespaceError
from fumehood.worker.sandbox.layout import stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_GRACE = 6000  # milliseconds; the zygote gives its sandboxes 5 s to end
_MAP = "map"  # what the inner process asks for, where a failure names its stage
_FRAME_MAX, _TEXT_MAX = 8192, 1000


def fork(inner: Callable[[socket], None]) -> tuple[int, socket]:
    """Run ``inner`` in a new process; its id, and the link to it. Raises ``NamespaceError``."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    with stage("fork"):
        pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        inner(theirs)
        code = 0
    except NamespaceError as exc:
        _report(theirs, exc.stage, exc.errno or 0, exc.strerror or "")
    except BaseException as exc:
        number = exc.errno if isinstance(exc, OSError) else None
        _report(theirs, "inner", number or 0, f"{type(exc).__name__}: {exc}")
    finally:
        os._exit(code)


def _report(link: socket, name: str, number: int, text: str) -> None:
    link.send(dumps((name, number, text[:_TEXT_MAX])))


def ask_for_map(link: socket) -> None:
    """In the inner process, just in a new user namespace: have its ids mapped."""
    _report(link, _MAP, 0, "")
    if not link.recv(1):
        os._exit(1)


def is_gone(link: socket) -> bool:
    """In the inner process: whether the outer one has ended."""
    poll = select.poll()
    poll.register(link.fileno(), 0)  # which leaves the hang-up
    return bool(poll.poll(0))


def attend(pid: int, link: socket, base: int, count: int) -> None:
    """Serve the inner process until it has become another, or has ended.

    Its ids from 0 to ``count`` - 1 are those from ``base`` on out here. Raises the
    ``NamespaceError`` that it reports, when nothing is left of it.
    """
    while frame := _receive(link):
        name, number, text = loads(frame)  # noqa: S302 - from a fork of this process
        try:
            if name != _MAP:
                raise NamespaceError(name, number, text)
            with stage("uid_map"):
                write(f"/proc/{pid}/uid_map", f"0 {base} {count}")
                write(f"/proc/{pid}/gid_map", f"0 {base} {count}")
                link.send(b"1")
        except NamespaceError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise


def _receive(link: socket) -> bytes:
    try:
        return link.recv(_FRAME_MAX)
    except ConnectionError:  # it was killed
        return b""


def write(path: str, text: str) -> None:
    """Write to a file of the kernel's, at once. Raises ``OSError``."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def wait(pid: int, control_fd: int) -> NoReturn:
    """Wait for the end of the inner process, or of the manager; then end as the inner one did."""
    write("/proc/self/comm", "fumehood-outer")
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(control_fd, 0)  # which leaves the hang-up
    if pidfd not in dict(poll.poll()):
        # The zygote sees that too, unless a module that it imports hangs.
        poll.unregister(control_fd)
        if not poll.poll(_GRACE):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
