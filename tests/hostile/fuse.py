"""A file system that never answers: whoever looks into it waits where no signal reaches.

Speaks just enough of the kernel's protocol (include/uapi/linux/fuse.h) to be mounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_INIT = 26  # FUSE_INIT
_REQUEST = struct.Struct("<IIQQIIII")  # struct fuse_in_header
_REPLY = struct.Struct("<IiQ")  # struct fuse_out_header
_INIT_REPLY = struct.Struct("<IIIIHHI")  # the first 24 bytes of struct fuse_init_out
_READ_MAX = 1 << 17
_MNT_FORCE, _MNT_DETACH = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


class DeadFileSystem:
    """Mounted at ``where`` for the length of a block. Needs root and ``/dev/fuse``."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.asked = threading.Event()  # set once a request waits for its answer

    def __enter__(self) -> Self:
        self.where.mkdir()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        target = os.fsencode(self.where)
        if _libc.mount(b"dead", target, b"fuse", 0, options.encode()):
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        target = os.fsencode(self.where)
        _libc.umount2(target, _MNT_FORCE)  # ends every wait
        _libc.umount2(target, _MNT_DETACH)
        os.close(self._fd)
        self.where.rmdir()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while request := os.read(self._fd, _READ_MAX):
                _, opcode, unique, *_ = _REQUEST.unpack_from(request)
                if opcode == _INIT:
                    self._greet(request, unique)
                else:
                    self.asked.set()  # and that is all that becomes of it

    def _greet(self, request: bytes, unique: int) -> None:
        major, minor = struct.unpack_from("<II", request, _REQUEST.size)
        body = _INIT_REPLY.pack(major, min(minor, 31), 0, 0, 0, 0, 4096) + bytes(40)
        os.write(self._fd, _REPLY.pack(_REPLY.size + len(body), 0, unique) + body)
