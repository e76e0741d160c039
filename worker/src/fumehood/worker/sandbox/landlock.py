"""Landlock: a process gives up access to files, TCP, abstract sockets and others' signals.

A ruleset is built once, before a fork, and inherited as a descriptor; a child takes it on in 7 us,
or in 80 us if that is its first system call made from here. It binds whoever takes it on and all
that it starts, needs no privilege, and cannot be undone. Rulesets taken on one after another add
up: all of them have to allow an act.

What the kernel offers grows with its ABI number (``linux/landlock.h``); ``offers`` names it.
Up to ABI 9 nothing covers UDP, netlink and other socket families, nor stat, chmod and chdir of
what may not be read. Nor is executing a memfd covered, for it has no path.
"""

from __future__ import annotations

import ctypes
import os
from errno import ENOENT, ENOSYS, ENOTDIR, EOPNOTSUPP
from stat import S_ISDIR
from struct import Struct

from fumehood.worker.sandbox.syscalls import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 1 << 9, 1 << 10, 1 << 11, 1 << 12
REFER, TRUNCATE, IOCTL_DEV, RESOLVE_UNIX = 1 << 13, 1 << 14, 1 << 15, 1 << 16
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPE_ABSTRACT_UNIX, SCOPE_SIGNAL = 1 << 0, 1 << 1

# What came with which ABI, and what a caller gains by it. Of ABI 7 (audit) and 8 (all threads at
# once) a single-threaded child has no use.
_FILES_OF_ABI_1 = (1 << 13) - 1
_HISTORY: list[tuple[int, str, str, int]] = [
    (1, "files", "fs", _FILES_OF_ABI_1),
    (2, "rename between directories", "fs", REFER),
    (3, "truncate", "fs", TRUNCATE),
    (4, "tcp", "net", BIND_TCP | CONNECT_TCP),
    (5, "device ioctl", "fs", IOCTL_DEV),
    (6, "abstract sockets", "scope", SCOPE_ABSTRACT_UNIX),
    (6, "signals", "scope", SCOPE_SIGNAL),
    (9, "path sockets", "fs", RESOLVE_UNIX),
]

_READ = READ_FILE | READ_DIR
# Neither execution nor devices. Moving within what may be written is fine: REFER still refuses
# a move that would gain a right. RESOLVE_UNIX is not needed to reach sockets of the domain itself.
_WRITE = (
    _READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | REFER
    | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM
)  # fmt: skip
#: The rights that a rule on something other than a directory may name; else it is EINVAL.
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV | RESOLVE_UNIX

_VERSION_FLAG = 1  # LANDLOCK_CREATE_RULESET_VERSION
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_ruleset_attr = Struct("=QQQ")  # handled for files, handled for TCP, scopes; older ABIs want zeros
_path_beneath = Struct("=Qi")


def abi() -> int:
    """The kernel's Landlock ABI; 0 where it has none, or may not be asked."""
    try:
        return call("landlock_create_ruleset", 0, 0, _VERSION_FLAG)
    except OSError:
        return 0


def offers(version: int) -> tuple[str, ...]:
    """What a ruleset can govern at this ABI, oldest first.

    Of "files", "rename between directories", "truncate", "tcp", "device ioctl", "abstract sockets",
    "signals" and "path sockets": sockets by path that somebody outside the sandbox listens on.
    """
    return tuple(name for since, name, _, _ in _HISTORY if since <= version)


class Ruleset:
    """What a process that takes it on may still do. Owns a close-on-exec descriptor.

    ``fd`` goes to ``restrict``; ``skipped`` are the paths of rules that did not exist.
    """

    __slots__ = ("_handled", "fd", "skipped")

    def __init__(self, files: int, tcp: int, scopes: int) -> None:
        """Deny what these masks name. Raises ``OSError``, EOPNOTSUPP if the kernel knows none."""
        version = abi()
        self._handled = files & _known(version, "fs")
        wanted = (self._handled, tcp & _known(version, "net"), scopes & _known(version, "scope"))
        if not any(wanted):
            raise OSError(
                EOPNOTSUPP if version else ENOSYS,
                f"Landlock ABI {version} has nothing of what is to be denied",
            )
        memory = ctypes.create_string_buffer(_ruleset_attr.pack(*wanted), _ruleset_attr.size)
        address = ctypes.addressof(memory)
        self.fd = call("landlock_create_ruleset", address, _ruleset_attr.size, 0)
        self.skipped: list[str] = []

    def allow(self, path: str, rights: int) -> None:
        """Allow this below ``path``, symbolic links followed; rights not handled are left out.

        A path that does not exist is noted in ``skipped``. Raises ``OSError`` for other failures.
        """
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno not in {ENOENT, ENOTDIR}:
                raise
            self.skipped.append(path)
            return
        try:
            rights &= self._handled
            if not S_ISDIR(os.fstat(place).st_mode):
                rights &= _OF_FILES
            if rights:
                self._add(place, rights)
        finally:
            os.close(place)

    def _add(self, place: int, rights: int) -> None:
        memory = ctypes.create_string_buffer(_path_beneath.pack(rights, place), _path_beneath.size)
        call("landlock_add_rule", self.fd, _RULE_PATH_BENEATH, ctypes.addressof(memory), 0)

    def close(self) -> None:
        """Close the descriptor; who has taken the ruleset on keeps it. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _known(version: int, kind: str) -> int:
    mask = 0
    for since, _, of, rights in _HISTORY:
        if of == kind and since <= version:
            mask |= rights
    return mask


_EVERYTHING = ~0


def allow_list(
    *, execute: Iterable[str] = (), read: Iterable[str] = (), write: Iterable[str] = ()
) -> Ruleset:
    """Everything that this kernel can deny is, but for these paths and what lies below them.

    ``execute`` may be read and executed, ``read`` only read, ``write`` read and changed but not
    executed, and no device made there. A path in several lists, or below one of another list, gets
    the rights of all. Raises ``OSError``: ENOSYS where there is no Landlock.
    """
    ruleset = Ruleset(_EVERYTHING, _EVERYTHING, _EVERYTHING)
    lists = [(execute, _READ | EXECUTE), (read, _READ), (write, _WRITE)]
    try:
        for paths, rights in lists:
            for path in paths:
                ruleset.allow(path, rights)
    except BaseException:
        ruleset.close()
        raise
    return ruleset


def scope_only() -> Ruleset:
    """Files and network stay as they are; signals and abstract sockets end at the sandbox.

    For jobs that may crash but do not attack. Raises ``OSError``: EOPNOTSUPP before ABI 6, ENOSYS
    where there is no Landlock.
    """
    return Ruleset(0, 0, SCOPE_ABSTRACT_UNIX | SCOPE_SIGNAL)


def signals_only() -> Ruleset:
    """Nothing changes but that signals end at the domain. Raises as ``scope_only``."""
    return Ruleset(0, 0, SCOPE_SIGNAL)


def restrict(fd: int) -> None:
    """Take on the ruleset that lies at ``fd``, for good; sets no_new_privs first.

    It holds for the calling thread and what it starts. Raises ``OSError``: EBADF or EBADFD for
    a descriptor of something else, E2BIG for a 17th ruleset.
    """
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1)
    call("landlock_restrict_self", fd, 0)
