"""Tasks that try to talk to somebody, and say how it went."""

from __future__ import annotations

import os
import socket
from typing import Any

from fumehood.common import task
from hostile.tasks.processes import attempt

_FAMILIES = {
    "tcp": (socket.AF_INET, socket.SOCK_STREAM, 0),
    "tcp6": (socket.AF_INET6, socket.SOCK_STREAM, 0),
    "udp": (socket.AF_INET, socket.SOCK_DGRAM, 0),
    "icmp": (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
    "raw": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "packet": (socket.AF_PACKET, socket.SOCK_RAW, 0),
    "netlink": (socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "vsock": (socket.AF_VSOCK, socket.SOCK_STREAM, 0),
    "alg": (socket.AF_ALG, socket.SOCK_SEQPACKET, 0),
    "can": (socket.AF_CAN, socket.SOCK_RAW, 0),
    "mptcp": (socket.AF_INET, socket.SOCK_STREAM, 262),
    "unix": (socket.AF_UNIX, socket.SOCK_STREAM, 0),
}


def _open(kind: str) -> socket.socket:
    sock = socket.socket(*_FAMILIES[kind])
    sock.settimeout(1.0)
    return sock


def _connect(kind: str, address: Any) -> None:
    with _open(kind) as sock:
        sock.connect(tuple(address) if isinstance(address, list) else address)
        sock.send(b"hello")


@task
def connect(kind: str, address: Any) -> str:
    return attempt(lambda: _connect(kind, address))


@task
def send_datagram(address: list[Any]) -> str:
    def send() -> None:
        with _open("udp") as sock:
            sock.sendto(b"hello", tuple(address))

    return attempt(send)


@task
def make_socket(kind: str) -> str:
    return attempt(lambda: _open(kind).close())


@task
def ask_vsock() -> str:
    return attempt(lambda: _connect("vsock", [2, 9999]))


@task
def resolve() -> str:
    return attempt(lambda: socket.getaddrinfo("example.com", 80))


@task
def listen(kind: str) -> str:
    def serve() -> None:
        with _open(kind) as sock:
            sock.bind(("127.0.0.1", 0))
            if kind == "tcp":
                sock.listen()

    return attempt(serve)


@task
def listen_without_bind() -> str:
    def serve() -> None:
        with _open("tcp") as sock:
            sock.listen()

    return attempt(serve)


@task
def abstract(name: str) -> str:
    return attempt(lambda: _connect("unix", f"\0{name}"))


@task
def by_path(path: str) -> str:
    return attempt(lambda: _connect("unix", path))


@task
def datagram_by_path(path: str) -> str:
    def send() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", path)

    return attempt(send)


@task
def pair_works() -> str:
    """What asyncio needs, and must be left."""
    ours, theirs = socket.socketpair()
    ours.send(b"x")
    return theirs.recv(1).decode()


@task
async def asyncio_works() -> str:
    import asyncio

    process = await asyncio.get_running_loop().run_in_executor(None, os.getpid)
    return "works" if process == os.getpid() else "?"
