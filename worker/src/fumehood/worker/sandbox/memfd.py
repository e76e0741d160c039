"""Sealed memfds: how payloads too large for a frame pass between manager and sandbox."""

from __future__ import annotations

import os

# Numbers of fcntl(2) and F_ADD_SEALS, which the ``fcntl`` module has names for only in part.
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE = 1, 2, 4, 8
SEALED = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_WRITE


def sealed(data: bytes) -> int:
    """A memfd that holds ``data`` and can be changed by nobody, read from its start."""
    from fcntl import fcntl  # a sandbox that sends little never loads it

    memfd = os.memfd_create("fumehood", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(memfd, view) :]
    os.lseek(memfd, 0, os.SEEK_SET)
    fcntl(memfd, F_ADD_SEALS, SEALED)
    return memfd
