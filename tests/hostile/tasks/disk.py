"""Tasks that fill disks, exhaust descriptors, and leave things in the way of others."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import resource
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from fumehood.common import task
from hostile.tasks.processes import attempt

MIB = 1 << 20
SHARED_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")
_FS_IOC_SETFLAGS, _FS_IMMUTABLE = 0x40086602, 0x10
_libc = ctypes.CDLL(None, use_errno=True)


def _folder(mark: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{mark}-"))


@task
def fill(mark: str, most: int) -> str:
    with (_folder(mark) / "filler").open("wb", buffering=0) as file:
        for _ in range(most // MIB):
            file.write(bytes(MIB))
    return "unbounded"


@task
def fill_with_many(mark: str, each: int, count: int) -> str:
    folder = _folder(mark)
    for number in range(count):
        (folder / str(number)).write_bytes(bytes(each))
    return "unbounded"


@task
def fill_and_catch(mark: str, most: int) -> list[str]:
    """The error by which a full disk shows itself, and that small files still fit afterwards."""
    folder = _folder(mark)
    said = attempt(lambda: (folder / "filler").write_bytes(bytes(most)))
    (folder / "filler").unlink()
    return [said, attempt(lambda: (folder / "small").write_bytes(b"fits"))]


@task
def allocate(mark: str, size: int) -> str:
    with (_folder(mark) / "allocated").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return "unbounded"


@task
def sparse(mark: str, size: int) -> int:
    path = _folder(mark) / "sparse"
    with path.open("wb") as file:
        file.truncate(size)
    return path.stat().st_size


@task
def ignore_the_file_limit(mark: str, most: int) -> None:
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fill.function(mark, most)


@task
def many_names(mark: str, count: int) -> str:
    folder = _folder(mark)
    for number in range(count):
        (folder / str(number)).touch()
    return "unbounded"


@task
def persist(mark: str) -> list[str]:
    """What it could leave where others look."""
    left: list[str] = []
    for place in SHARED_PLACES:
        with contextlib.suppress(OSError):
            Path(place, f"{mark}-left").write_text("left by a job")
            left.append(place)
    return left


@task
def look_for(mark: str) -> list[str]:
    """What others have left."""
    places = [Path(place) for place in SHARED_PLACES]
    return [str(path) for place in places if place.is_dir() for path in place.glob(f"{mark}*")]


@task
def awkward_tree(mark: str, how: str) -> str:  # noqa: C901, PLR0912 - a catalogue
    """Something that takes care to remove."""
    folder = _folder(mark)
    if how == "deep":
        here = os.getcwd()  # noqa: PTH109 - it is put back as it was
        os.chdir(folder)
        for _ in range(1000):
            os.mkdir("deeper")  # noqa: PTH102 - one name at a time: the whole would be too long
            os.chdir("deeper")
        os.chdir(here)
    elif how == "closed":
        (folder / "inside").mkdir()
        (folder / "inside" / "file").touch()
        (folder / "inside").chmod(0)
        folder.chmod(0)
    elif how == "names":
        for odd in (b"\xff\xfe", b"new\nline", b"-rf", b" ", b"\x1b[2J", b"\xed\xa0\x80"):
            os.close(os.open(os.fsencode(folder) + b"/" + odd, os.O_CREAT | os.O_WRONLY))
    elif how == "immutable":
        (folder / "file").touch()
        with (folder / "file").open("rb") as file:
            return attempt(lambda: fcntl.ioctl(file, _FS_IOC_SETFLAGS, _immutable()))
    elif how == "links":
        for number in range(2000):
            (folder / f"link-{number}").symlink_to("/etc/passwd")
    elif how == "loops":
        (folder / "a").symlink_to(folder / "b")
        (folder / "b").symlink_to(folder / "a")
        (folder / "up").symlink_to("..")
    elif how == "fifo":
        for name in ("result", "job", "stdout", "cgroup.procs"):
            os.mkfifo(folder / name)
    elif how == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(folder / "result"))
    elif how == "traps":
        for name in ("result", "run_script", "cwd", "stdout", "cgroup.procs"):
            (folder / name).symlink_to("/etc/passwd")
    return "made"


def _immutable() -> bytes:
    return array.array("i", [_FS_IMMUTABLE]).tobytes()


@task
def bury_cwd(mark: str) -> str:
    """Where it stands is gone when it ends."""
    folder = _folder(mark)
    os.chdir(folder)
    folder.rmdir()
    return attempt(os.getcwd)


@task
def exhaust_descriptors(most: int) -> str:
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(most)]
    return "unbounded" if kept else "none"


@task
def pass_descriptors_to_itself(most: int) -> str:
    """Descriptors in flight count for nobody's RLIMIT_NOFILE."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    null = os.open(os.devnull, os.O_RDONLY)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 200))]
    for _ in range(most):
        if attempt(lambda: ours.sendmsg([b"x"], rights)) != "done":
            break
    theirs.close()
    return "passed"


@task
def dump_core(mark: str) -> None:
    os.chdir(_folder(mark))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.abort()


@task
def change_everything() -> str:
    """Of its own process, all that a process can change."""
    import locale
    import random
    import signal
    import sys

    os.umask(0)
    os.environ["HOSTILE_SPOILT"] = "1"
    os.nice(5)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    random.seed(1)
    sys.setrecursionlimit(400)
    sys.path.insert(0, "/nowhere")
    sys.modules["json"] = sys
    _libc.prctl(15, b"renamed", 0, 0, 0)
    os.chdir("/")
    with contextlib.suppress(OSError):
        os.chroot("/proc")
    return "changed"


@task
def lock_and_hang(path: str) -> None:
    """A lock on a file that others use; it must go with this process."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    time.sleep(20)


@task
def lock_by_daemon(path: str) -> str:
    from hostile.tasks.processes import leave_daemons

    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return str(leave_daemons.function(1))


@task
def open_files_limit() -> Any:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@task
def ipc_residue(mark: str, key: int) -> list[str]:
    """System V IPC and a POSIX queue that outlive the process; which of them could be made."""
    made: list[str] = []
    if _libc.shmget(key, 4096, 0o1600) >= 0:
        made.append("shm")
    if _libc.semget(key, 1, 0o1600) >= 0:
        made.append("sem")
    if _libc.msgget(key, 0o1600) >= 0:
        made.append("msg")
    if _libc.mq_open(f"/{mark}".encode(), os.O_CREAT | os.O_RDWR, 0o600, None) >= 0:
        made.append("mq")
    return made
