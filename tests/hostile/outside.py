"""What lies outside of the sandboxes: services, files and processes to reach for, and to be denied.

Also the positive control: a trusted job reaches what an untrusted one must not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: In every name that a hostile job gives to anything, so that what it leaves is known for its own.
MARK = f"hostile-{os.getpid()}"
#: Of System V objects that hostile jobs make.
IPC_KEY = 0x40000000 | os.getpid()
SHARED_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")
_IPC_RMID = 0
_libc = ctypes.CDLL(None, use_errno=True)


class Outside:
    """Listeners on every kind of socket, a secret, a decoy process; for one run of cases."""

    def __init__(self) -> None:
        self.mark = MARK
        self.secret = f"hostile-secret-{secrets.token_hex(16)}"
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        folder = self._closing.enter_context(
            tempfile.TemporaryDirectory(prefix="outside-", ignore_cleanup_errors=True)
        )
        self.folder = Path(folder)
        self.folder.chmod(0o755)
        self.secret_file = self.folder / "secret"
        self.secret_file.write_text(self.secret)
        self.unix_path = str(self.folder / "socket")
        self.datagram_path = str(self.folder / "datagrams")
        self.abstract_name = f"{MARK}-{secrets.token_hex(4)}"
        self.tcp = self._serve(socket.AF_INET, ("127.0.0.1", 0))
        self._serve(socket.AF_UNIX, self.unix_path)
        self._serve(socket.AF_UNIX, f"\0{self.abstract_name}")
        datagrams = self._closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind(self.datagram_path)
        for path in (self.unix_path, self.datagram_path):
            Path(path).chmod(0o777)
        self.start_decoy()
        self._closing.callback(self._end_decoy)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._closing.close()

    def _serve(self, family: int, address: Any) -> list[Any]:
        listener = self._closing.enter_context(socket.socket(family))
        listener.bind(address)
        listener.listen()
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        # Closing alone does not end an accept() in another thread.
        self._closing.callback(_shut, listener)
        where = listener.getsockname()
        return list(where) if isinstance(where, tuple) else [where]

    def start_decoy(self) -> None:
        """Have a process to reach for."""
        self.decoy = subprocess.Popen(["sleep", "3600"], env={})

    def _end_decoy(self) -> None:
        self.decoy.kill()
        self.decoy.wait()


def _accept(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            with listener.accept()[0] as connection, contextlib.suppress(OSError):
                connection.settimeout(1.0)
                connection.recv(16)


def _shut(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)


# --- what jobs leave where others see it ----------------------------------------------------


def residue() -> list[str]:
    """What hostile jobs of this process have left on the host."""
    found = [
        str(path)
        for place in map(Path, SHARED_PLACES)
        if place.is_dir()
        for path in place.glob(f"{MARK}*")
    ]
    for kind in ("shm", "sem", "msg"):
        lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
        ours = {IPC_KEY, IPC_KEY - (1 << 32)}
        found += [f"System V {kind}" for line in lines if int(line.split()[0]) in ours]
    if _unlink_queue():
        found.append("POSIX message queue")
    keys = Path("/proc/keys")
    if keys.exists() and MARK in keys.read_text():
        found.append("a key")
    return found


def _unlink_queue() -> bool:
    return bool(_libc.mq_unlink(f"/{MARK}".encode()) == 0)


def sweep() -> None:
    """Take away what trusted jobs have left, which was theirs to leave."""
    for place in map(Path, SHARED_PLACES):
        for path in place.glob(f"{MARK}*"):
            subprocess.run(["chattr", "-R", "-i", str(path)], capture_output=True, check=False)
            subprocess.run(["chmod", "-R", "u+rwX", str(path)], capture_output=True, check=False)
            subprocess.run(["rm", "-rf", str(path)], check=False)
    for kind, remove in (("shm", _libc.shmctl), ("msg", _libc.msgctl)):
        for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
            if int(line.split()[0]) == IPC_KEY:
                remove(int(line.split()[1]), _IPC_RMID, None)
    for line in Path("/proc/sysvipc/sem").read_text().splitlines()[1:]:
        if int(line.split()[0]) == IPC_KEY:
            _libc.semctl(int(line.split()[1]), 0, _IPC_RMID)
    _unlink_queue()
