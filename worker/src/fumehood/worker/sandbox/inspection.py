"""What a thread, a descriptor or a process is, as far as /proc and the interpreter tell.

For ``findings``. Nothing here changes what it looks at: a socket, for instance, is looked up in the
kernel's tables, for an object around a copy of its descriptor could make it non-blocking.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_INET, AF_INET6, inet_ntop

from fumehood.common.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any

_NO_HOMES = ("threading", "builtins")  # which say nothing of who wanted a thread
_UNIX = "a UNIX socket"
_STACK_MAX = 100  # frames of a thread that are looked at
_LISTENING = "0A"  # in /proc/net/tcp
_ACCEPTS = 0x10000  # in the flags of /proc/net/unix


class Thread(Value):
    """A thread of this process: its name, and the modules that it executes, the innermost first."""

    __slots__ = ("is_of_c", "modules", "name", "text")

    name: str
    modules: tuple[str, ...]
    text: str
    is_of_c: bool

    def __init__(self, name: str, modules: tuple[str, ...], text: str, is_of_c: bool) -> None:
        self._set(name=name, modules=modules, text=text, is_of_c=is_of_c)


def thread(tid: str) -> Thread:
    """What is known of a thread, from its id as text."""
    python = _python_thread(tid)
    if python is None:
        name = _name_of(f"/proc/self/task/{tid}")
        own = name if name != _name_of("/proc/self") else "one of C code, without a name"
        return Thread(name, (), own, True)
    try:
        return _described(python)
    except Exception:  # a class of its own, which may have any code
        return Thread("", (), "one whose name cannot be told", False)


def _described(python: Any) -> Thread:
    owners = [getattr(python, name, None) for name in ("_target", "function", "__class__")]
    modules = [getattr(owner, "__module__", None) for owner in owners]
    homes = [each for each in modules if isinstance(each, str) and each not in _NO_HOMES]
    frames = sys._current_frames()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    stack = _stack(frames.get(python.ident))
    text = f"{python.name} of {homes[0]}" if homes else str(python.name)
    return Thread(str(python.name), (*stack, *homes), text, False)


def is_of_c(tid: str) -> bool:
    """Whether ``threading`` does not know of the thread, or not any more."""
    return _python_thread(tid) is None


def _python_thread(tid: str) -> Any:
    enumerate_threads = getattr(sys.modules.get("threading"), "enumerate", None)
    if enumerate_threads is None:  # not imported, or about to be
        return None
    return next((t for t in enumerate_threads() if str(t.native_id) == tid), None)


def _stack(frame: FrameType | None) -> Iterator[str]:
    for _ in range(_STACK_MAX):
        if frame is None:
            return
        name = frame.f_globals.get("__name__")
        if isinstance(name, str):
            yield name
        frame = frame.f_back


def _name_of(directory: str) -> str:
    try:
        with open(f"{directory}/comm", "rb") as file:
            return os.fsdecode(file.read().rstrip(b"\n"))
    except OSError:
        return ""


def is_alive(tid: str) -> bool:
    """Whether this process has such a thread."""
    return os.path.exists(f"/proc/self/task/{tid}")


def command(pid: int) -> str:
    """The command line of a process; its name, when it has none any more."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = os.fsdecode(file.read().rstrip(b"\0").replace(b"\0", b" "))
    except OSError:
        line = ""
    return line or _name_of(f"/proc/{pid}")


def loaded_files() -> set[str]:
    """The names, without folders, of the files that are mapped into this process."""
    found: set[str] = set()
    with open("/proc/self/maps", "rb") as file:
        for line in file:
            path = line.partition(b"/")[2]
            found.add(os.fsdecode(path.rpartition(b"/")[2].rstrip()))
    return found


def is_nameless(link: str) -> bool:
    """Whether a descriptor has no name or address that would tell what it is for."""
    if is_socket(link):
        return descriptor(link) == _UNIX
    return link.startswith(("pipe:[", "anon_inode:"))


def look_like_a_loop(links: list[str]) -> bool:
    """Whether these may be what an event loop holds: an epoll, and two sockets to wake it."""
    pair = [link for link in links if is_socket(link) and is_nameless(link)]
    return any("eventpoll" in link for link in links) and len(pair) >= 2


def is_socket(link: str) -> bool:
    """Whether a descriptor's link in /proc says that it is a socket."""
    return link.startswith("socket:[")


def descriptor(link: str) -> str:
    """What a descriptor is, from its link in /proc: a path, or a few words."""
    if is_socket(link):
        return _socket(link[len("socket:[") : -1])
    if link.startswith("anon_inode:"):
        name = link.removeprefix("anon_inode:").strip("[]")
        return "epoll" if name == "eventpoll" else name
    if link.startswith("pipe:["):
        return "a pipe"
    return link.removeprefix("/memfd:").removesuffix(" (deleted)") if "/memfd:" in link else link


def _socket(inode: str) -> str:
    for protocol in ("tcp", "udp"):
        for family, suffix in ((AF_INET, ""), (AF_INET6, "6")):
            for fields in _table(protocol + suffix):
                if len(fields) > 9 and fields[9] == inode:
                    return _internet(protocol.upper(), family, *fields[1:4])
    for fields in _table("unix"):
        if len(fields) > 6 and fields[6] == inode:
            where = fields[7] if len(fields) > 7 else ""
            listens = int(fields[3], 16) & _ACCEPTS
            what = "a listening UNIX socket" if listens else _UNIX
            return f"{what} at {where}" if where else what
    return "a socket"


def _table(name: str) -> Iterator[list[str]]:
    try:
        with open(f"/proc/self/net/{name}", "rb") as file:
            for line in file:
                yield os.fsdecode(line.rstrip()).split(maxsplit=7 if name == "unix" else -1)
    except OSError:
        return


def _internet(protocol: str, family: int, local: str, remote: str, state: str) -> str:
    if protocol == "TCP" and state == _LISTENING:
        return f"a TCP socket that listens on {_address(family, local)}"
    if remote.rpartition(":")[2] != "0000":
        return f"a {protocol} socket connected to {_address(family, remote)}"
    return f"a {protocol} socket at {_address(family, local)}"


def _address(family: int, text: str) -> str:
    """``0100007F:1F90`` is 127.0.0.1:8080: words of 32 bits in the order of this machine."""
    address, _, port = text.partition(":")
    packed = bytes.fromhex(address)
    if sys.byteorder == "little":
        packed = b"".join(packed[i : i + 4][::-1] for i in range(0, len(packed), 4))
    host = inet_ntop(family, packed)
    return f"[{host}]:{int(port, 16)}" if family == AF_INET6 else f"{host}:{int(port, 16)}"
