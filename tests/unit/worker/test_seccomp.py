"""The system call filter in this kernel: what it refuses, by which errno, and what goes on."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from support.confined import Ending, ending_of, is_unconfined, status_field
from support.refused_calls import refused

from fumehood.worker.sandbox import seccomp
from fumehood.worker.sandbox.syscalls import ARCHITECTURES, HIGHEST, call

HERE = platform.machine()

pytestmark = pytest.mark.skipif(
    HERE not in ARCHITECTURES or not Path("/proc/sys/kernel/seccomp").exists(),
    reason="no seccomp filters here, or an architecture that is not known",
)
needs_privilege = pytest.mark.skipif(
    not is_unconfined(), reason="what root may is refused here without our filter as well"
)


def confine() -> None:
    seccomp.install(seccomp.program())


def both(act: Callable[[], object]) -> tuple[Ending, Ending]:
    """How it ends without the filter, and with it."""
    return ending_of(act), ending_of(act, confine)


def errno_of(name: str) -> int:
    try:
        call(name, *(-1,) * 6)
    except OSError as exc:
        return exc.errno or -1
    return 0


def errnos() -> dict[str, int]:
    """What each refused call says to arguments that no call takes."""
    os.setsid()  # vhangup then finds no terminal to hang up
    return {name: errno_of(name) for name in refused(HERE)}


def test_every_refused_call_is_refused() -> None:
    assert ending_of(errnos, confine) == Ending(value=refused(HERE))


@needs_privilege
def test_nothing_is_denied_without_the_filter() -> None:
    found = ending_of(errnos).value
    assert set(found) == set(refused(HERE))
    assert not {name for name, code in found.items() if code == errno.EPERM}
    assert found["clone3"] != errno.ENOSYS


@pytest.mark.parametrize(
    "family", [socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET], ids=str
)
def test_a_socket_into_the_network_is_forbidden(family: socket.AddressFamily) -> None:
    def act() -> None:
        socket.socket(family, socket.SOCK_RAW if family == socket.AF_PACKET else socket.SOCK_DGRAM)

    free, held = both(act)
    assert held == Ending(errno=errno.EACCES)
    if is_unconfined():
        assert free == Ending()


def test_local_sockets_go_on_working(tmp_path: Path) -> None:
    def act() -> bytes:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(str(tmp_path / "s"))
            server.listen()
            client.connect(str(tmp_path / "s"))
            client.sendall(b"in")
            return server.accept()[0].recv(2)

    assert ending_of(act, confine) == Ending(value=b"in")


def clone(flags: int) -> str:
    pid = call("clone", flags | signal.SIGCHLD)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "cloned"


# NEWNS, and NEWCGROUP to NEWNET
@pytest.mark.parametrize("flag", [1 << 17, *(1 << bit for bit in range(25, 31))], ids=hex)
def test_a_clone_gets_no_namespace(flag: int) -> None:
    free, held = both(lambda: clone(flag))
    assert held == Ending(errno=errno.EPERM)
    assert ending_of(lambda: clone(0xABCD << 32 | flag), confine) == Ending(errno=errno.EPERM)
    assert ending_of(lambda: clone(0), confine) == Ending(value="cloned")
    if is_unconfined():
        assert free == Ending(value="cloned")


@needs_privilege
@pytest.mark.parametrize("upper", [0, 0xABCD << 32], ids=hex)
@pytest.mark.parametrize(
    ("request_", "free_errno"),
    [(0x5412, 0), (0x541C, errno.ENOTTY), (0x5423, 0)],
    ids=["TIOCSTI", "TIOCLINUX", "TIOCSETD"],
)
def test_a_terminal_cannot_be_written_into(upper: int, request_: int, free_errno: int) -> None:
    line_discipline = ctypes.create_string_buffer(bytes(4))  # N_TTY, or a NUL to type
    main, terminal = os.openpty()
    where = ctypes.addressof(line_discipline)
    try:
        free, held = both(lambda: call("ioctl", terminal, upper | request_, where))
        assert held == Ending(errno=errno.EPERM)
        assert free == (Ending(errno=free_errno) if free_errno else Ending(value=0))
        size = ending_of(lambda: fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)), confine)
        assert size == Ending(value=bytes(8))
    finally:
        os.close(main)
        os.close(terminal)


def test_leases_are_denied_and_locks_are_not(tmp_path: Path) -> None:
    def lease() -> None:
        with tempfile.TemporaryFile(dir=tmp_path) as file:
            fcntl.fcntl(file, 1024, fcntl.F_WRLCK)

    def notify() -> None:
        fcntl.fcntl(os.open(tmp_path, os.O_RDONLY), 1026, 1)

    def lock() -> None:
        with tempfile.TemporaryFile(dir=tmp_path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.lockf(file, fcntl.LOCK_EX)

    for act in (lease, notify):
        assert both(act) == (Ending(), Ending(errno=errno.EPERM))
    assert ending_of(lock, confine) == Ending()


def test_limits_of_another_process_are_out_of_reach() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    parent = os.getpid()
    lower = (limits[0], limits[1])
    assert both(lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE, lower)) == (
        Ending(value=limits),
        Ending(errno=errno.EPERM),
    )
    own = ending_of(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)), confine)
    asked = ending_of(lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE), confine)
    assert (own, asked) == (Ending(), Ending(value=limits))


def test_personality_and_scheduling() -> None:
    no_randomization = 0x0040000
    free, held = both(lambda: call("personality", no_randomization))
    assert (free, held) == (Ending(value=0), Ending(errno=errno.EPERM))
    assert ending_of(lambda: call("personality", 0xFFFFFFFF), confine) == Ending(value=0)
    real_time = os.sched_param(1)
    free, held = both(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, real_time))
    assert held == Ending(errno=errno.EPERM)
    if is_unconfined():
        assert free == Ending()
    idle = ending_of(lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)), confine)
    assert idle == Ending()


@pytest.mark.skipif(HERE != "x86_64", reason="x32 and i386 calls exist on x86-64 only")
class TestOtherAbis:
    def test_an_x32_call_ends_the_process(self) -> None:
        libc = ctypes.CDLL(None)
        free, held = both(lambda: libc.syscall(1 << 30 | 39))
        assert held == Ending(signal=signal.SIGSYS)
        assert not free.signal

    def test_an_i386_call_ends_the_process(self) -> None:
        # mov eax, 20 (getpid); int 0x80; ret
        code = bytes.fromhex("b814000000 cd80 c3")
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        act = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        free, held = both(act)
        if free.signal:
            pytest.skip("this kernel has no 32-bit calls")
        assert held == Ending(signal=signal.SIGSYS)


def test_numbers_from_beyond_are_not_there() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for number in (HIGHEST + 1, -1):  # the last has bit 30 as well, and is no x32 call
        act = lambda number=number: (libc.syscall(number), ctypes.get_errno())  # noqa: E731
        assert ending_of(act, confine) == Ending(value=(-1, errno.ENOSYS))


def test_a_filter_is_made_before_a_fork_and_loaded_after_it() -> None:
    prepared = seccomp.Filter(seccomp.program())

    def act() -> tuple[str, str]:
        return status_field("Seccomp"), status_field("NoNewPrivs")

    assert ending_of(act, prepared.install) == Ending(value=("2", "1"))


def test_base_and_rest_add_up() -> None:
    def base() -> None:
        seccomp.install(seccomp.base_program())

    def rest() -> None:
        seccomp.install(seccomp.rest_program())

    def act() -> tuple[int, int, int]:
        return errno_of("unshare"), errno_of("ptrace"), errno_of("clone3")

    refused, unknown = errno.EPERM, errno.ENOSYS
    assert ending_of(act, base) == Ending(value=(errno.EINVAL, refused, unknown))
    assert ending_of(act, base, rest) == Ending(value=(refused, refused, unknown))


def test_what_is_no_program_is_refused() -> None:
    broken = struct.pack("=HBBI", 0x15, 200, 200, 0)
    assert ending_of(lambda: seccomp.install(broken)) == Ending(errno=errno.EINVAL)


PROGRAM = """
import asyncio, concurrent.futures, multiprocessing, sqlite3, subprocess, sys, tempfile, threading

def double(value):
    return 2 * value

async def main():
    process = await asyncio.create_subprocess_exec("/bin/echo", "a", stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return out, await asyncio.to_thread(double, 21)

if __name__ == "__main__":
    from fumehood.worker.sandbox import seccomp
    seccomp.install(seccomp.program())
    got = []
    thread = threading.Thread(target=got.append, args=(1,))
    thread.start(); thread.join()
    assert got == [1]
    assert subprocess.run(["/bin/echo", "b"], capture_output=True).stdout == b"b\\n"
    assert asyncio.run(main()) == (b"a\\n", 42)
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            assert list(pool.map(double, range(4))) == [0, 2, 4, 6]
    with tempfile.TemporaryDirectory() as folder, sqlite3.connect(f"{folder}/x.db") as db:
        db.execute("create table t (x)")
    print("all of it")
"""


def test_what_programs_usually_do_goes_on_working(tmp_path: Path) -> None:
    script = tmp_path / "usual.py"
    script.write_text(PROGRAM, encoding="utf-8")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "all of it\n"), ran.stderr
