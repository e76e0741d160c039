"""Trying out a leaf: what it cannot do for a process, it does not hold.

A file that can be written proves nothing: some kernels and containers take limits and ignore them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

from fumehood.worker.sandbox.cgroup_leaf import Leaf

_ANSWER_MAX, _GONE_MAX, _STEP = 10.0, 2.0, 0.002  # seconds
_LIMIT, _HELD = 64 << 20, 4 << 20  # bytes that it may have, and that it touches

# Joins as sandboxes do, tries to fork, has some memory, and waits to be killed. Answers "+" when it
# could fork and "-" when it could not, or the number of the file through which it cannot join.
_COMMAND = f"""
import os, sys
for number, fd in enumerate(sys.argv[1:]):
    try:
        os.write(int(fd), b"0")
    except OSError as exc:
        os.write(1, b"%d %d" % (number, exc.errno))
        os._exit(1)
try:
    os.waitpid(os.fork() or os._exit(0), 0)
    answer = b"+"
except OSError:
    answer = b"-"
held = b"x" * {_HELD}
os.write(1, answer)
os.read(0, 1)
"""


def faults(leaf: Leaf, purposes: frozenset[str]) -> dict[str, str]:
    """What does not work in an empty leaf, of "kill", "memory", "processes", "cpu", "populated".

    Raises ``OSError`` when it cannot be tried out.
    """
    try:
        leaf.limit(_LIMIT, 1)
    except OSError as exc:
        file = os.path.basename(str(exc.filename))
        return {"memory" if file.startswith("memory") else "processes": str(exc)}
    leaf.begin()
    with _start(leaf) as process:
        try:
            found = _look(leaf, process)
            if "kill" not in found:
                found |= _kill(leaf, process)
        finally:
            process.kill()
    _wait_until_empty(leaf)
    return {purpose: why for purpose, why in found.items() if purpose in purposes}


def _start(leaf: Leaf) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-S", "-s", "-P", "-c", _COMMAND, *map(str, leaf.procs_fds)],
        env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=leaf.procs_fds,
    )


def _look(leaf: Leaf, process: subprocess.Popen[bytes]) -> dict[str, str]:
    """What is wrong while the process is in it."""
    assert process.stdout is not None  # noqa: S101 - a pipe, as was asked for
    ready, _, _ = select.select([process.stdout], [], [], _ANSWER_MAX)
    answer = os.read(process.stdout.fileno(), 64) if ready else b""
    if answer not in (b"+", b"-"):
        return _blame(leaf, answer)
    found: dict[str, str] = {}
    seen = leaf.seen()
    if leaf.pids() != [process.pid] or not leaf.populated():
        found["populated"] = found["kill"] = "a process that joined a cgroup is not seen in it"
    if leaf.residue() < _HELD:
        found["memory"] = "memory in use is not charged to its cgroup"
    if answer == b"+":
        found["processes"] = "a limit on processes is not enforced"
    if not seen.cpu:
        found["cpu"] = "CPU time is not counted"
    return found


def _blame(leaf: Leaf, answer: bytes) -> dict[str, str]:
    number, _, error = answer.partition(b" ")
    if not error:
        return {"kill": "a process that joined a cgroup did not answer"}
    purpose = leaf.purpose_of(int(number))
    return {purpose: f"a process cannot join: {os.strerror(int(error))}"}


def _kill(leaf: Leaf, process: subprocess.Popen[bytes]) -> dict[str, str]:
    """What is wrong with the end of the process."""
    leaf.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GONE_MAX)
    if process.returncode != -signal.SIGKILL:
        return {"kill": "what is in a cgroup cannot be killed"}
    if not _wait_until_empty(leaf):
        return {"populated": "a cgroup stays populated when its processes have ended"}
    return {}


def _wait_until_empty(leaf: Leaf) -> bool:
    end = time.monotonic() + _GONE_MAX
    while leaf.populated():
        if time.monotonic() > end:
            return False
        time.sleep(_STEP)
    return True
