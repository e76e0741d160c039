"""What a doctor puts outside of its sandboxes for them to reach in vain.

All of it belongs to the node's user, and is open to everybody: whoever is refused is refused by
the sandbox. Before any job tries, the node itself does (``Targets.controls``); what not even the
node can do proves nothing, and is left out.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from typing import Any

from fumehood.worker.sandbox import acts

_MARK_BYTES = 5  # with the prefix the 13 characters that fit into a process's name
_CODE_MAX = 24  # files and folders of code that are tried
_NEIGHBOUR = "import os; os.read(0, 1)"


class Targets:
    """Listeners, files and a neighbour. ``open`` it, use it, ``close`` it. Both block."""

    def __init__(self) -> None:
        self.mark = f"fh-{secrets.token_hex(_MARK_BYTES)}"
        self.text = self.mark.encode()
        self.addresses: dict[str, Any] = {}
        self.controls: dict[str, str] = {}  # act -> how it ended for the node itself
        self.code: list[str] = []  # files and folders of code that the node may change
        self.hidden: list[str] = []  # files that everybody may read
        self.neighbour: subprocess.Popen[bytes] | None = None
        self._datagrams: dict[str, socket.socket] = {}
        self._closing = contextlib.ExitStack()

    def open(self) -> None:
        """Put everything in its place, and try it. Raises ``OSError``."""
        try:
            self._start_neighbour()
            self._listen()
            self._make_files()
            self._try_all()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take everything away. Idempotent."""
        self._closing.close()

    # --- putting it in its place --------------------------------------------------------------

    def _start_neighbour(self) -> None:
        """An ordinary process of the node's user, with something in its environment."""
        self.neighbour = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _NEIGHBOUR],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={"FUMEHOOD_DOCTOR": self.mark},
        )
        self._closing.callback(self._end_neighbour, self.neighbour)

    @staticmethod
    def _end_neighbour(neighbour: subprocess.Popen[bytes]) -> None:
        neighbour.kill()
        if neighbour.stdin is not None:
            neighbour.stdin.close()
        neighbour.wait()

    def _listen(self) -> None:
        for name, family, host in (
            ("", socket.AF_INET, "127.0.0.1"),
            ("6", socket.AF_INET6, "::1"),
        ):
            with contextlib.suppress(OSError):  # a host without IPv6, or without a loopback
                stream = self._bound(family, socket.SOCK_STREAM, (host, 0))
                stream.listen()
                self.addresses[f"tcp{name}"] = [host, stream.getsockname()[1]]
                datagram = self._bound(family, socket.SOCK_DGRAM, (host, 0))
                self.addresses[f"udp{name}"] = [host, datagram.getsockname()[1]]
                self._datagrams[f"udp{name}"] = datagram
        if "tcp" in self.addresses:
            self.addresses["mptcp"] = self.addresses["tcp"]
        abstract = f"\0{self.mark}"
        self._bound(socket.AF_UNIX, socket.SOCK_STREAM, abstract).listen()
        self.addresses["unix by abstract name"] = abstract

    def _bound(self, family: int, kind: int, address: Any) -> socket.socket:
        sock = self._closing.enter_context(socket.socket(family, kind))
        sock.bind(address)
        sock.setblocking(False)
        return sock

    def _make_files(self) -> None:
        folder = tempfile.mkdtemp(prefix=f"{self.mark}-", dir=_open_folder())
        self._closing.callback(shutil.rmtree, folder, ignore_errors=True)
        os.chmod(folder, 0o755)  # noqa: S103 - so that a refusal is not the file system's
        path = f"{folder}/socket"
        self._bound(socket.AF_UNIX, socket.SOCK_STREAM, path).listen()
        os.chmod(path, 0o777)  # noqa: S103
        self.addresses["unix by path"] = path
        hidden = f"{folder}/readable"
        with open(hidden, "w", encoding="ascii") as file:
            file.write(self.mark)
        os.chmod(hidden, 0o644)
        self.hidden.append(hidden)

    # --- trying it ----------------------------------------------------------------------------

    def _try_all(self) -> None:
        controls = acts.network(self.addresses, self.text)
        self.received()
        controls["listen"] = acts.listen()
        controls["hidden"] = acts.read(self.hidden[0])
        controls |= acts.unusual_calls()
        controls["neighbour"] = self._read_neighbour()
        self.controls = controls
        self.code = [path for path in _code() if acts.open_to_write(path) == acts.OK]
        for name in [name for name in self.addresses if controls[name] != acts.OK]:
            del self.addresses[name]

    def _read_neighbour(self) -> str:
        assert self.neighbour is not None  # noqa: S101 - it is started first
        return acts.read(f"/proc/{self.neighbour.pid}/environ")

    def received(self) -> set[str]:
        """Which datagram listeners were reached since the last time."""
        return {name for name, sock in self._datagrams.items() if _drain(sock, self.text)}

    def has_neighbour(self) -> bool:
        """Whether the neighbour is alive."""
        return self.neighbour is not None and self.neighbour.poll() is None

    def take_litter(self) -> list[str]:
        """Remove what a job has left of its files where all can see it; the folders."""
        found: list[str] = []
        for folder in dict.fromkeys((tempfile.gettempdir(), *acts.TEMPORARY)):
            for path in (f"{folder}/{self.mark}", f"{folder}/{self.mark}-full"):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    found.append(folder)
        return list(dict.fromkeys(found))

    def marked(self) -> list[int]:
        """The living processes of the host that bear the mark. Reads all of /proc."""
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and self.bears(name)]

    def bears(self, pid: int | str) -> bool:
        """Whether a process bears the mark, and is no zombie."""
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                name, _, rest = file.read().rpartition(b")")
        except OSError:
            return False
        return name.endswith(b"(" + self.text) and rest.split()[0] not in (b"Z", b"X")


def _drain(sock: socket.socket, text: bytes) -> bool:
    found = False
    with contextlib.suppress(BlockingIOError):
        while True:
            found |= sock.recv(256).startswith(text)
    return found


def _open_folder() -> str:
    """A folder for temporary files that everybody may enter."""
    for folder in (*acts.TEMPORARY, tempfile.gettempdir()):
        parts = folder.split("/")
        above = ["/".join(parts[:depth]) or "/" for depth in range(1, len(parts) + 1)]
        if os.access(folder, os.W_OK) and all(_is_open(each) for each in above):
            return folder
    return tempfile.gettempdir()


def _is_open(folder: str) -> bool:
    try:
        return bool(os.stat(folder).st_mode & stat.S_IXOTH)
    except OSError:
        return False


def _code() -> list[str]:
    """Files and folders of the code that sandboxes are shown: of ours, Python's, and the node's."""
    found = [acts.__file__, os.__file__, sys.executable]
    found += [os.path.dirname(path) for path in found]
    for folder in dict.fromkeys(entry or os.getcwd() for entry in sys.path):
        if os.path.isdir(folder) and len(found) < _CODE_MAX:
            found += [folder, *_first_module(folder)]
    return list(dict.fromkeys(map(os.path.realpath, found)))


def _first_module(folder: str) -> list[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.name.endswith(".py")][:1]
    return []
