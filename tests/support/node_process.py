"""``fumehood`` as a process of its own: any command, or a worker that is up for a block."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

FUMEHOOD = [sys.executable, "-c", "from fumehood.common.cli import main; main()"]
_SERVING = "fumehood.worker: serving"
_START_TIMEOUT = 40.0  # seconds; half a second on an idle machine


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The surroundings without any setting of Fumehood's; ``extra`` on top."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FUMEHOOD_")}
    return {**kept, **(extra or {})}


def run_fumehood(
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*FUMEHOOD, *arguments],
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class WorkerProcess:
    """A running ``fumehood worker``."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        """Return when it has logged this; fail when it ends or takes too long."""
        end = time.monotonic() + _START_TIMEOUT
        while text not in self.log:
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the worker did not log {text!r}:\n{self.log}")
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.process.wait(40)


@contextmanager
def worker(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, ready: str = _SERVING
) -> Generator[WorkerProcess]:
    """``fumehood worker`` once it has logged ``ready``; ended with the block."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*FUMEHOOD, "worker", *arguments],
                cwd=cwd,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        found = WorkerProcess(process, log)
        try:
            found.wait_for(ready)
            yield found
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
