"""A private RabbitMQ node: own ports, own data, own cookie, own epmd; never the system's broker.

The scripts that Debian puts on the PATH insist on the user ``rabbitmq``, so those underneath are
called. Needs the package ``rabbitmq-server``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_SBIN = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"
_START_TIMEOUT = 90.0  # seconds; 5 s on an idle machine
_HEADER = b"AMQP\x00\x00\x09\x01"

_CONFIG = """\
listeners.tcp.default = 127.0.0.1:{port}
loopback_users = none
consumer_timeout = 86400000
disk_free_limit.absolute = 1MB
log.file.level = info
"""


class RabbitMissing(RuntimeError):
    """RabbitMQ is not installed on this machine."""


def find_sbin() -> Path:
    """The folder of RabbitMQ's own scripts. Raises ``RabbitMissing`` with the remedy."""
    found = sorted(Path("/").glob(_SBIN.lstrip("/")))
    if not found:
        raise RabbitMissing(
            "these tests need a real RabbitMQ: install the Debian package 'rabbitmq-server' "
            f"(apt-get install rabbitmq-server); looked for {_SBIN}"
        )
    return found[-1]


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PrivateNode:
    """One node in a temporary folder; ``start`` and ``stop`` at will, then ``close``."""

    def __init__(self) -> None:
        self._sbin = find_sbin()
        parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.base = Path(tempfile.mkdtemp(prefix="fumehood-rabbit-", dir=parent))
        self.port = free_port()
        self._dist_port = free_port()
        self._epmd_port = free_port()
        self._name = f"fumehood{secrets.token_hex(4)}@localhost"
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._write_files()

    @property
    def url(self) -> str:
        """The AMQP URL of the administrator ``guest``."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """The process id of the Erlang VM."""
        if self._pid is None:
            raise RuntimeError("the node is not running")
        return self._pid

    def start(self) -> Self:
        """Start the node and wait until it speaks AMQP."""
        self._start_epmd()
        with (self.base / "out").open("ab") as out:
            self._server = subprocess.Popen(
                [self._sbin / "rabbitmq-server"],
                env=self._environment(),
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_answering()
        except BaseException:
            self.close()
            raise
        self._pid = int((self.base / "pid").read_text())
        return self

    def stop(self) -> None:
        """Stop in order; the data stays."""
        if self._server is None:
            return
        self.resume()
        self._server.terminate()
        try:
            self._server.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        self._server = self._pid = None

    def kill(self) -> None:
        """SIGKILL the Erlang VM: a crash of the broker. The data stays."""
        if self._server is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid or self._server.pid, signal.SIGKILL)
        self._server.kill()
        self._server.wait(10)
        self._server = self._pid = None

    def pause(self) -> None:
        """SIGSTOP: the broker is there and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo ``pause``."""
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGCONT)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this node (1 to 2 s each) and return its output."""
        done = subprocess.run(
            [self._sbin / "rabbitmqctl", "-q", "-n", self._name, *arguments],
            env=self._environment(),
            cwd=self.base,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def close(self) -> None:
        """Stop everything and remove the folder."""
        if self._server is not None:
            self.resume()
            self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(10)
            self._epmd = None
        shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def log(self, lines: int = 60) -> str:
        """The end of everything that the node wrote."""
        paths = [self.base / "out", *sorted((self.base / "log").glob("*.log"))]
        texts = [path.read_text(errors="replace") for path in paths if path.exists()]
        return "\n".join("\n".join(texts).splitlines()[-lines:])

    def _write_files(self) -> None:
        (self.base / "env.conf").write_text("")
        (self.base / "enabled_plugins").write_text("[].\n")
        (self.base / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port))
        cookie = self.base / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)

    def _environment(self) -> dict[str, str]:
        base = str(self.base)
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": base,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": f"{base}/env.conf",
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": f"{base}/db",
            "RABBITMQ_LOG_BASE": f"{base}/log",
            "RABBITMQ_PID_FILE": f"{base}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{base}/enabled_plugins",
            "RABBITMQ_CONFIG_FILE": f"{base}/rabbitmq",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none",
        }

    def _start_epmd(self) -> None:
        # Our own, in the foreground: one that the node starts would outlive it.
        if self._epmd is None:
            epmd = shutil.which("epmd")
            if epmd is None:
                raise RabbitMissing("epmd is missing: install the Debian package 'erlang-base'")
            self._epmd = subprocess.Popen(
                [epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._wait_for(lambda: _connects(self._epmd_port), "epmd")

    def _wait_until_answering(self) -> None:
        self._wait_for(lambda: _speaks_amqp(self.port), "the node")

    def _wait_for(self, condition: object, what: str) -> None:
        assert callable(condition)
        end = time.monotonic() + _START_TIMEOUT
        while not condition():
            died = self._server is not None and self._server.poll() is not None
            if died or time.monotonic() > end:
                raise RuntimeError(f"{what} did not start:\n{self.log()}")
            time.sleep(0.05)


def _connects(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _speaks_amqp(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as probe:
        probe.settimeout(2)
        probe.sendall(_HEADER)
        return len(probe.recv(16)) > 0
    return False
