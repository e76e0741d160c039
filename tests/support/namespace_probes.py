"""What the tests have done in a confined zygote and its jobs; each value is plain data."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import pwd
import signal
import socket
import sys
import tempfile
from multiprocessing import Lock, shared_memory
from pathlib import Path
from typing import Any

_IPC_CREAT = 0o1000
_NOSUID, _NODEV, _REMOUNT, _BIND = 2, 4, 32, 4096
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_SYSV: dict[str, tuple[Any, ...]] = {"shm": (4096,), "sem": (1,), "msg": ()}


def nothing() -> None:
    """Nothing."""


def hang() -> None:
    """Never answer."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    while True:
        signal.pause()


# --- files ----------------------------------------------------------------------------------


def exists(path: str) -> bool:
    return Path(path).exists()


def listing(path: str) -> list[str]:
    return sorted(each.name for each in Path(path).iterdir())


def read(path: str) -> str:
    return Path(path).read_text(errors="replace")[:4096]


def write(path: str, text: str = "x") -> str:
    Path(path).write_text(text)
    return Path(path).read_text()


def remove(path: str) -> None:
    Path(path).unlink()


def make_files(folder: str, count: int) -> int:
    """How many of ``count`` empty files can be made."""
    for number in range(count):
        try:
            Path(folder, f"f{number}").touch()
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            return number
    return count


def fill(path: str, size: int) -> int:
    """How many of ``size`` bytes can be written."""
    with Path(path).open("wb", buffering=0) as file:
        for at in range(0, size, 4096):
            try:
                file.write(b"x" * 4096)
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                return at
    return size


def stat(path: str) -> tuple[int, int, int]:
    """Mode, owner, device."""
    state = Path(path).stat()
    return state.st_mode, state.st_uid, state.st_dev


def temporary() -> dict[str, str]:
    """Which folder the standard library takes for temporary files, and a file's content in it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"kept")
        file.flush()
        return {"folder": str(Path(file.name).parent), "content": Path(file.name).read_text()}


def mountpoints() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def devices() -> dict[str, Any]:
    null, zero, random = (Path(f"/dev/{name}") for name in ("null", "zero", "urandom"))
    null.write_bytes(b"gone")
    with zero.open("rb") as one, random.open("rb") as two:
        return {
            "names": listing("/dev"),
            "null": null.read_bytes(),
            "zero": one.read(4),
            "random": len(two.read(8)),
        }


def posix_shm() -> bytes:
    """A segment of POSIX shared memory and a semaphore, which lie in /dev/shm."""
    with Lock():
        segment = shared_memory.SharedMemory(create=True, size=64)
    try:
        with memoryview(segment.buf or b"") as view:
            view[:4] = b"text"
            return bytes(view[:4])
    finally:
        segment.close()
        segment.unlink()


# --- rights ---------------------------------------------------------------------------------


def ids() -> dict[str, Any]:
    return {
        "uid": os.getresuid(),
        "gid": os.getresgid(),
        "groups": os.getgroups(),
        "effective": int(status_of("self")["CapEff"], 16),
        "cwd": str(Path.cwd()),
        "executable": sys.executable,
    }


def remount(path: str) -> None:
    """Try to make a mount writable, as who has the rights for mounts could."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, path.encode(), None, _REMOUNT | _BIND | _NOSUID | _NODEV, None) != 0:
        raise OSError(ctypes.get_errno(), "remount")


def unmount(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(path.encode(), 2) != 0:
        raise OSError(ctypes.get_errno(), "umount")


def signal_process(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def read_memory(pid: int) -> int:
    """The first bytes of the program of process ``pid``, as its memory has them."""
    start = int(Path(f"/proc/{pid}/maps").read_text().split("-")[0], 16)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        file.seek(start)
        return len(file.read(mmap.PAGESIZE))


def processes() -> list[int]:
    return sorted(int(name) for name in listing("/proc") if name.isdigit())


def host_names() -> tuple[str, str]:
    return socket.gethostname(), Path("/proc/sys/kernel/domainname").read_text().strip()


def status_of(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def is_hanging(pid: int) -> bool:
    """Whether a process has called ``hang``."""
    return bool(int(status_of(pid)["SigBlk"], 16) & 1 << (signal.SIGUSR1 - 1))


def account() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def variable(name: str) -> str | None:
    return os.environ.get(name)


def namespaces(pid: int | str = "self") -> dict[str, str]:
    folder = Path(f"/proc/{pid}/ns")
    return {path.name: str(path.readlink()) for path in folder.iterdir()}


# --- network --------------------------------------------------------------------------------


def interfaces() -> dict[str, str]:
    """Name -> whether it is up."""
    return {name: "up" if _flags(name) & _IFF_UP else "down" for _, name in socket.if_nameindex()}


def _flags(name: str, new: int | None = None) -> int:
    request = bytearray(name.encode().ljust(40, b"\0"))
    code = _SIOCGIFFLAGS if new is None else _SIOCSIFFLAGS
    if new is not None:
        request[16] = new
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, code, request)
    return request[16]


def raise_loopback() -> None:
    _flags("lo", _IFF_UP)


def connect(host: str, port: int, kind: str = "tcp") -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        try:
            sock.connect((host, port))
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
    return "connected"


def connect_unix(name: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(name)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
    return "connected"


# --- System V IPC and POSIX queues ----------------------------------------------------------


def make_sysv(kind: str, key: int) -> int:
    return _sysv(kind, key, _IPC_CREAT | 0o666)


def find_sysv(kind: str, key: int) -> int:
    """Raises ``OSError`` with ENOENT where there is none."""
    return _sysv(kind, key, 0)


def _sysv(kind: str, key: int, flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    got = getattr(libc, f"{kind}get")(key, *map(ctypes.c_size_t, _SYSV[kind]), flags)
    if got < 0:
        raise OSError(ctypes.get_errno(), f"{kind}get")
    return int(got)


def open_queue(name: str, create: bool) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = os.O_RDWR | (os.O_CREAT if create else 0)
    got = libc.mq_open(name.encode(), flags, 0o666, None)
    if got < 0:
        raise OSError(ctypes.get_errno(), "mq_open")
    return int(got)
