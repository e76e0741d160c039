"""Tasks that look where they should see nothing, and write where they must not."""

from __future__ import annotations

import builtins
import contextlib
import errno
import json
import os
import random
import re
import socket
import sys
import tempfile
import uuid
from pathlib import Path

from fumehood.common import task
from hostile.tasks.processes import attempt

#: Made at import, and therefore the same in every fork unless somebody sees to it.
DICE = random.Random()
# The pattern does not match itself, so that a hit in this process's memory is none of its own.
_SECRET = re.compile(rb"hostile-secret-[0-9a-f]{32}")


def _read(path: str | Path, size: int = 1 << 20) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read(size)


@task
def open_of(pid: int, name: str) -> str:
    """How reading ``/proc/PID/name`` of the parent (0) or of another process goes."""
    folder = f"/proc/{pid or os.getppid()}"
    if name == "fd":
        return attempt(lambda: os.listdir(f"{folder}/fd"))  # noqa: PTH208
    return attempt(lambda: _read(f"{folder}/{name}", 1))


@task
def secrets_in_sight() -> list[str]:
    """Where it found what looks like the secret in the node's environment."""
    found = [f"os.environ {name}" for name, value in os.environ.items() if _is_secret(value)]
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                if _SECRET.search(_read(process / name)):
                    found.append(f"{process.name} {name}")
    return found


def _is_secret(text: str) -> bool:
    return bool(_SECRET.search(os.fsencode(text)))


@task
def secrets_in_memory() -> int:
    """How often the secret is in this process's own memory."""
    found = 0
    with open("/proc/self/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        for line in _read("/proc/self/maps", 1 << 22).splitlines():
            span, rights, *_ = line.split()
            start, end = (int(part, 16) for part in span.split(b"-"))
            if not rights.startswith(b"rw") or end - start > 256 << 20:
                continue
            with contextlib.suppress(OSError, ValueError, OverflowError):
                memory.seek(start)
                found += len(_SECRET.findall(memory.read(end - start)))
    return found


@task
def descriptors() -> list[str]:
    """Open descriptors beyond those that every sandbox has."""
    found: list[str] = []
    for fd in range(256):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
            if fd > 5:
                found.append(f"{fd} {target}")
    return found


@task
def read_file(path: str) -> str:
    return attempt(lambda: _read(path))


@task
def list_folder(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))  # noqa: PTH208
    except OSError as exc:
        return [errno.errorcode[exc.errno or 0]]


@task
def overwrite(paths: list[str]) -> list[str]:
    """Those of the files that it could open to write; nothing is written."""
    opened: list[str] = []
    for path in paths:
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
            opened.append(path)
    return opened


@task
def code_files() -> list[str]:
    """Every kind of code that a later job would run."""
    import msgpack

    import fumehood.common

    files = [__file__, os.__file__, sys.executable, json.__file__, msgpack.__file__]
    return [*files, fumehood.common.__file__ or "", "/etc/passwd", "/bin/sh"]


@task
def make_beside(paths: list[str], mark: str) -> list[str]:
    """Those folders of the files in which it could make one of its own; it takes it away again."""
    made: list[str] = []
    for folder in {os.path.dirname(path) for path in paths}:  # noqa: PTH120
        path = f"{folder}/{mark}"
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            made.append(folder)
            os.unlink(path)  # noqa: PTH108
    return made


@task
def settings_of_the_kernel() -> list[str]:
    """What it could open to write of /proc and /sys beyond its own process."""
    paths = [
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger",
        "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/1/oom_score_adj", "/dev/kmsg",
        "/proc/sys/vm/drop_caches", "/sys/power/state",
    ]  # fmt: skip
    opened: list[str] = []
    for path in paths:
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY))
            opened.append(path)
    return opened


@task
def leave_the_cgroup() -> str:
    """Whether some cgroup takes this process in."""
    said = "no cgroup in sight"
    for top in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/memory"):
        for path in (f"{top}/cgroup.procs", f"{top}/tasks"):
            if not os.path.exists(path):  # noqa: PTH110
                continue
            said = attempt(lambda path=path: _write_own_pid(path))  # type: ignore[misc]
            if said == "done":
                return f"left by {path}"
    return said


def _write_own_pid(path: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123
        file.write("0")


@task
def cgroup_files() -> list[str]:
    """Files of cgroups that it could open to write."""
    opened: list[str] = []
    for folder, _, names in os.walk("/sys/fs/cgroup"):
        for name in names:
            with contextlib.suppress(OSError):
                os.close(os.open(f"{folder}/{name}", os.O_WRONLY))
                opened.append(f"{folder}/{name}")
        if len(opened) > 20:
            break
    return opened


@task
def patch_everything() -> str:
    """What a later job in the same process would fall over."""
    for name in ("open", "print", "len", "isinstance"):
        setattr(builtins, name, None)
    json.dumps = json.loads = None  # type: ignore[assignment]
    for name in list(sys.modules):
        if name.startswith(("json", "msgpack", "asyncio", "socket")):
            del sys.modules[name]
    sys.meta_path.clear()
    return "patched"


@task
def forge_by_patching() -> int:
    """The runner's own functions, replaced: it may forge its own value, and no more."""
    _replace("pack", lambda _: b"\x2a")
    return 1


@task
def forge_the_exit() -> None:
    _replace("_exit", lambda *_: None)
    raise ValueError("the end is disarmed")


def _replace(name: str, by: object) -> None:
    from fumehood.worker.sandbox import child

    setattr(child, name, by)
    if hasattr(os, name):
        setattr(os, name, by)


@task
def chance() -> list[str]:
    """Random numbers of every source that a job might use."""
    names = tempfile._get_candidate_names()  # type: ignore[attr-defined]
    return [
        repr(random.random()),
        repr(DICE.random()),
        str(uuid.uuid4()),
        str(uuid.uuid1(node=1)),
        os.urandom(8).hex(),
        next(names),
        repr(random.SystemRandom().random()),
    ]


@task
def inspect_channel() -> str:
    """What the job socket shows of the manager."""
    sock = socket.socket(fileno=os.dup(3))
    peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return f"{sock.getpeername()!r} {len(peer)}"


@task
def terminal() -> str:
    """Whether it can push characters into somebody's terminal."""
    import fcntl
    import termios

    for fd in range(6):
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, termios.TIOCSTI, b"x")
            return f"pushed into {fd}"
    return attempt(lambda: os.close(os.open("/dev/tty", os.O_RDWR)))


@task
def hash_and_address() -> list[int]:
    return [hash("hostile"), id(object)]
