"""What a doctor has tried: once by the node, which may, and once by a job, which may not.

Both run the same code, so that a refusal is the sandbox's and no mistake of the act's. Each act
answers ``"ok"`` or an errno by name; those of several steps put the step before it.
"""

from __future__ import annotations

import os
import socket
from errno import errorcode

from fumehood.worker.sandbox.syscalls import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

OK = "ok"
#: Where temporary files usually go; /tmp and its like are private to an untrusted job.
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - looked at, by names of our own
_TRIES_MAX = 0.5  # seconds that a connection may take; on the loopback it takes none
_MPTCP = 262
_PTRACE_SEIZE = 0x4206  # attaches without a stop, and lets go at the tracer's end
_KCMP_FILE = 0


def attempt(act: Callable[[], object], step: str = "") -> str:
    """How an act ends."""
    try:
        act()
    except OSError as exc:
        name = errorcode.get(exc.errno or 0, type(exc).__name__)
        return f"{step} {name}" if step else name
    return OK


# --- network --------------------------------------------------------------------------------

Address = tuple[str, int] | str


def talk(family: int, kind: int, protocol: int, address: Address, text: bytes = b"") -> str:
    """Connect to ``address``, and send ``text`` if there is any."""
    try:
        sock = socket.socket(family, kind, protocol)
    except OSError as exc:
        return f"socket {errorcode.get(exc.errno or 0, exc.errno)}"
    with sock:
        sock.settimeout(_TRIES_MAX)
        said = attempt(lambda: sock.connect(address), "connect")
        if said == OK and text:
            said = attempt(lambda: sock.send(text), "send")
        return said


def network(where: Mapping[str, Any], text: bytes) -> dict[str, str]:
    """Speak to each of these listeners, of ``targets.Targets.addresses``."""
    families = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6, "mptcp": socket.AF_INET}
    families |= {"udp": socket.AF_INET, "udp6": socket.AF_INET6}
    found: dict[str, str] = {}
    for name, address in where.items():
        if name.startswith("unix"):
            found[name] = talk(socket.AF_UNIX, socket.SOCK_STREAM, 0, address)
            continue
        kind = socket.SOCK_DGRAM if name.startswith("udp") else socket.SOCK_STREAM
        protocol = _MPTCP if name == "mptcp" else 0
        place = (address[0], address[1])
        found[name] = talk(families[name], kind, protocol, place, text + name.encode())
    return found


def listen() -> str:
    """Take connections on a port that the kernel chooses."""
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    except OSError as exc:
        return f"socket {errorcode.get(exc.errno or 0, exc.errno)}"
    with sock:
        return attempt(sock.listen, "listen")


def network_namespace() -> str:
    """Which network this process is in; empty where it cannot be told."""
    try:
        return os.readlink("/proc/self/ns/net")
    except OSError:
        return ""


# --- files ----------------------------------------------------------------------------------


def open_to_write(path: str) -> str:
    """Open a file or a folder so that it could be changed, and change nothing."""
    flags = os.O_WRONLY | os.O_TMPFILE if os.path.isdir(path) else os.O_RDWR
    return attempt(lambda: os.close(os.open(path, flags | os.O_CLOEXEC, 0o600)))


def read(path: str) -> str:
    """Read the beginning of a file."""

    def act() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.read(fd, 64)
        finally:
            os.close(fd)

    return attempt(act)


# --- other processes ------------------------------------------------------------------------


def spy_on(pid: int) -> dict[str, str]:
    """Reach for the memory and the environment of a process."""
    if pid == os.getpid():  # a number of another PID namespace, which means nobody else here
        return dict.fromkeys(("environ", "mem"), "ESRCH")
    return {
        "environ": read(f"/proc/{pid}/environ"),
        "mem": attempt(lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC))),
    }


def trace(pid: int) -> str:
    """Attach to a process, until the own end. The kernel asks for the same right as for "mem"."""
    if pid == os.getpid():
        return "ESRCH"
    return attempt(lambda: call("ptrace", _PTRACE_SEIZE, pid, 0, 0))


def send_signal(pid: int, number: int) -> str:
    """Send a signal; 0 is none, and is allowed to whoever may send the others."""
    return "ESRCH" if pid == os.getpid() else attempt(lambda: os.kill(pid, number))


# --- the kernel -----------------------------------------------------------------------------


def unusual_calls() -> dict[str, str]:
    """Calls that any user may make of a kernel, and that few programs do."""
    own = os.getpid()
    ring = attempt(lambda: call("io_uring_setup", 0, 0))
    return {
        "unshare": attempt(lambda: call("unshare", 0)),
        "kcmp": attempt(lambda: call("kcmp", own, own, _KCMP_FILE, 0, 0)),
        "netlink": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
        # That no ring has no entries is said by who would make one.
        "io_uring": OK if ring in ("EINVAL", "EFAULT") else ring,
    }
