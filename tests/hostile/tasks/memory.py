"""Tasks that take memory of every kind. None takes more than its ``most`` bytes."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import time
import zlib
from pathlib import Path
from typing import Any

from fumehood.common import task

MIB = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p
_libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
_IPC_PRIVATE, _IPC_CREAT, _MAP_HUGETLB = 0, 0o1000, 0x40000


def _fail() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


@task
def heap(most: int) -> str:
    kept = [bytearray(b"x") * MIB for _ in range(most // MIB)]
    return "unbounded" if kept else "none"


@task
def many_objects(most: int) -> str:
    kept = [[number] for number in range(most // 64)]
    return "unbounded" if kept else "none"


@task
def shared_mapping(most: int) -> str:
    area = mmap.mmap(-1, most, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    for at in range(0, most, 4096):
        area[at] = 1
    return "unbounded"


@task
def memfd(most: int) -> str:
    fd = os.memfd_create("hostile")
    for _ in range(most // MIB):
        os.write(fd, bytes(MIB))
    return "unbounded"


@task
def file_in(folder: str, mark: str, most: int) -> str:
    with Path(folder, f"{mark}-memory").open("wb") as file:
        file.writelines(bytes(MIB) for _ in range(most // MIB))
    return "unbounded"


@task
def sysv_segment(key: int, most: int) -> str:
    segment = _libc.shmget(key, ctypes.c_size_t(most), _IPC_CREAT | 0o600)
    if segment < 0:
        _fail()
    address = _libc.shmat(segment, None, 0)
    if address == ctypes.c_void_p(-1).value:
        _fail()
    for at in range(0, most, 4096):
        ctypes.c_byte.from_address(address + at).value = 1
    return "unbounded"


@task
def in_a_child(most: int, linger: float) -> int:
    """A bomb in a child; how the child ended, after some time."""
    child = os.fork()
    if child == 0:
        try:
            heap.function(most)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    time.sleep(linger)
    return os.waitstatus_to_exitcode(status)


@task
def in_many_children(count: int, each: int) -> str:
    """No single one takes much."""
    ready, told = os.pipe()
    for _ in range(count):
        if os.fork() == 0:
            try:
                kept = bytearray(b"x") * each
                os.write(told, b".")
                time.sleep(20 + len(kept) % 2)
            finally:
                os._exit(0)
    for _ in range(count):
        os.read(ready, 1)
    return "unbounded"


@task
def swallowed(most: int) -> str:
    """Whoever catches MemoryError and goes on."""
    kept: list[Any] = []
    end = time.monotonic() + 20
    while time.monotonic() < end and len(kept) * MIB < most:
        try:
            kept.append(bytearray(b"x") * MIB)
        except MemoryError:
            time.sleep(0.001)
    return "unbounded"


@task
def locked(most: int) -> str:
    area = mmap.mmap(-1, most)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(most)):
        _fail()
    return "unbounded"


@task
def huge_pages(most: int) -> str:
    area = mmap.mmap(-1, most, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB)
    for at in range(0, most, 4096):
        area[at] = 1
    return "unbounded"


@task
def address_space() -> str:
    """Asked for and never touched: costs nobody anything."""
    areas = [mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)]
    return f"mapped {len(areas)}"


@task
def kernel_objects(kind: str, most: int) -> str:
    """What the kernel keeps for a process: bounded by a count, a limit, or not at all."""
    kept: list[Any] = []
    for number in range(most):
        if kind == "pipes":
            read, write = os.pipe()
            os.set_blocking(write, False)
            os.write(write, bytes(65536))
            kept.append((read, write))
        elif kind == "sockets":
            pair = socket.socketpair()
            pair[0].setblocking(False)
            pair[0].send(bytes(65536))
            kept.append(pair)
        elif kind == "epoll":
            import select

            kept.append(select.epoll())
        elif kind == "inotify":
            kept.append(_libc.inotify_init())
            if kept[-1] < 0:
                _fail()
        elif kind == "names":
            _stat_nothing(number)
        elif kind == "maps":
            kept.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ if number % 2 else 3))
    return "unbounded"


def _stat_nothing(number: int) -> None:
    """Leaves a negative entry in the kernel's cache of names."""
    os.path.exists(f"/{'n' * 200}{number}")  # noqa: PTH110 - by the ten thousand


@task
def inflate(data: bytes) -> int:
    return len(zlib.decompress(data))


@task
def take_anything(value: Any = None, **names: Any) -> int:
    return len(names) or len(str(type(value)))
