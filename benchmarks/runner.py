"""A runner as ``sandbox.py`` sees it: a process that is given orders, and what it costs in CPU.

Every contender is a process of its own, all alike: nothing that one has imported or left in memory
is copied by the forks of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rivals.environments import Unavailable

_END_MAX = 5.0  # seconds for a runner to leave when it is told that there are no more orders
_GONE_MAX = 2.0  # seconds for the last of its processes to leave its cgroup
_REASON_MAX = 160  # characters
_HERE = Path(__file__).resolve().parent


class CpuMeter:
    """CPU time of a runner and of all that it starts, by a cgroup of cgroup v1's cpuacct.

    Counting children by ``wait`` would miss Fumehood's sandboxes, which the kernel reaps. Where the
    controller is missing or may not be used, ``seconds`` is None: on cgroup v2 a further cgroup
    around a node would change how it makes its own.
    """

    def __init__(self, name: str) -> None:
        self._path: Path | None = None
        try:
            # Not named like Fumehood's own: a node that starts takes away those that are stale.
            path = _cpuacct() / f"bench-{os.getpid()}-{name}"
            path.mkdir()
            self._path = path
            self.procs_fd = os.open(path / "cgroup.procs", os.O_WRONLY)
        except OSError:
            self.procs_fd = -1

    def join(self) -> None:
        """In the runner's process: be counted."""
        if self.procs_fd >= 0:
            os.write(self.procs_fd, b"0")

    def seconds(self) -> float | None:
        """CPU seconds so far."""
        if self._path is None:
            return None
        return int((self._path / "cpuacct.usage").read_text()) / 1e9

    def close(self) -> None:
        """Take the cgroup away. What is still in it after a while keeps it."""
        if self.procs_fd >= 0:
            os.close(self.procs_fd)
        give_up = time.monotonic() + _GONE_MAX
        while self._path is not None:
            try:
                self._path.rmdir()
                return
            except OSError:
                if time.monotonic() > give_up:
                    return
                time.sleep(0.02)


def _cpuacct() -> Path:
    """The directory of this process's cpuacct cgroup. Raises ``OSError``."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpuacct" in controllers.split(","):
            return Path("/sys/fs/cgroup") / controllers / path.lstrip("/")
    raise FileNotFoundError("no cpuacct controller")


def _plain_environ() -> dict[str, str]:
    """Without what sets Fumehood up: a mechanism that somebody has disabled would cost nothing."""
    return {name: text for name, text in os.environ.items() if not name.startswith("FUMEHOOD_")}


class Runner:
    """One runner. Raises ``Unavailable`` for whatever goes wrong with it, and why."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], timeout: float
    ) -> None:
        self._meter = CpuMeter(name)
        self._said = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the runner
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**_plain_environ(), "PYTHONPATH": str(_HERE), **environ},
                cwd=_HERE,
                preexec_fn=self._meter.join,  # noqa: PLW1509 - there are no threads here
                start_new_session=True,
            )
        except OSError as exc:
            self._errors.close()
            self._meter.close()
            raise Unavailable(f"cannot start {command[0]}: {exc.strerror}") from exc
        try:
            self.facts = self._answer(timeout)
        except BaseException:
            self.close()
            raise

    def ask(self, order: str, timeout: float) -> tuple[dict[str, Any], float | None]:
        """The answer to an order within ``timeout`` seconds, and the CPU seconds that it took."""
        assert self._process.stdin is not None
        before = self._meter.seconds()
        try:
            self._process.stdin.write(f"{order}\n".encode())
            self._process.stdin.flush()
        except OSError as exc:
            raise Unavailable(f"it is gone: {exc.strerror}") from exc
        answer = self._answer(timeout)
        after = self._meter.seconds()
        return answer, None if before is None or after is None else after - before

    def _answer(self, timeout: float) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self._line(timeout))
        except json.JSONDecodeError:
            raise Unavailable("it answered what is no JSON") from None
        for kind in ("unavailable", "failed"):
            if kind in answer:
                text = " ".join(str(answer[kind]).split())
                raise Unavailable(text[:_REASON_MAX])
        return answer

    def _line(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        fd, give_up = self._process.stdout.fileno(), time.monotonic() + timeout
        while b"\n" not in self._said:
            if not select.select([fd], [], [], max(0.0, give_up - time.monotonic()))[0]:
                raise Unavailable(f"no answer within {timeout:.0f} s")
            data = os.read(fd, 1 << 16)
            if not data:
                raise Unavailable(f"it ended without an answer: {self._last_error()}")
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line

    def _last_error(self) -> str:
        """The last line that it has written to stderr."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 2000))
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no error either")

    def close(self) -> None:
        """No more orders: it leaves, or is killed with its process group."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        # Not reaped before its group is killed, so that nobody else has the number by then.
        ended = os.pidfd_open(self._process.pid)
        select.select([ended], [], [], _END_MAX)
        os.close(ended)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()
        self._meter.close()
