"""Mounts and namespaces: the system calls, by their numbers where the C library has no name.

Each raises ``OSError`` with a text that names the call and its object.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8  # mount(2); mount_setattr(2) has the same values
_NOATIME, _NODIRATIME, _RELATIME = 1 << 10, 1 << 11, 1 << 21
_REMOUNT, _BIND, _REC, _PRIVATE = 1 << 5, 1 << 12, 1 << 14, 1 << 18
_DETACH = 2  # umount2(2)
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_SETATTR = 442  # on every architecture; Linux 5.12
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_KEPT = {
    "ro": RDONLY, "nosuid": NOSUID, "nodev": NODEV, "noexec": NOEXEC,
    "noatime": _NOATIME, "nodiratime": _NODIRATIME, "relatime": _RELATIME,
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
# Resolved here, for sandboxes call them: a first look-up in a fresh process is dear.
# Without argument types, whose conversions touch a page more each; no flag here has a 32nd bit.
_unshare, _mount = _libc.unshare, _libc.mount


def unshare(flags: int) -> None:
    """Leave the namespaces that ``flags`` name for new ones."""
    if _unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare {flags:#x}: {os.strerror(number)}")


def mount(kind: bytes, target: bytes, flags: int, options: bytes | None = None) -> None:
    """Mount a new file system of a kind."""
    if _mount(kind, target, kind, flags, options) != 0:
        raise _failed(f"mount {kind.decode()} on", os.fsdecode(target))


def make_private() -> None:
    """Let no mount made from now on in this namespace reach another, nor theirs this one."""
    if _mount(None, b"/", None, _REC | _PRIVATE, None) != 0:
        raise _failed("make private", "/")


def bind(source: str, target: str) -> None:
    """Show ``source``, with all that is mounted below it, at ``target`` too."""
    if _mount(os.fsencode(source), os.fsencode(target), None, _BIND | _REC, None) != 0:
        raise _failed(f"bind {source} to", target)


def restrict(target: str, flags: int) -> None:
    """Add ``flags`` to the mount at ``target`` and to every one below it, at once."""
    attributes, where = struct.pack("=4Q", flags, 0, 0, 0), os.fsencode(target)
    if _call(_MOUNT_SETATTR, _AT_FDCWD, where, _AT_RECURSIVE, attributes, len(attributes)) != 0:
        raise _failed("mount_setattr", target)


def restrict_each(target: str, flags: int, mountinfo: str) -> None:
    """The same for a kernel before 5.12, mount by mount; ``mountinfo`` is the file of that name."""
    for point, kept in _mounts_below(target, mountinfo):
        all_flags = _REMOUNT | _BIND | flags | kept
        if _mount(None, point, None, all_flags, None) != 0:
            raise _failed("remount", os.fsdecode(point))


def _mounts_below(target: str, mountinfo: str) -> list[tuple[bytes, int]]:
    found: list[tuple[bytes, int]] = []
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            point = _unescape(fields[4])
            if point == target or point.startswith(target.rstrip("/") + "/"):
                words = fields[5].split(",")
                # Left out, a flag would be cleared, which a user namespace may not do.
                found.append((os.fsencode(point), sum(_KEPT.get(word, 0) for word in words)))
    if not found:
        raise OSError(errno.EINVAL, f"{target} is not mounted")
    return found


def _unescape(path: str) -> str:
    # mountinfo has these four as three octal digits: proc(5).
    for char in " \t\n\\":
        path = path.replace(f"\\{ord(char):03o}", char)
    return path


def pivot(new_root: str) -> None:
    """Make ``new_root`` the root of everything, and let go of the old one."""
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"pivot_root: not known for {os.uname().machine}")
    os.chdir(new_root)
    # The old root comes to lie upon the new one, which spares a folder for it: pivot_root(2).
    if _call(number, b".", b".") != 0:
        raise _failed("pivot_root to", new_root)
    if _libc.umount2(b".", _DETACH) != 0:
        raise _failed("umount", "the old root")
    os.chdir("/")


def freeze_root() -> None:
    """Make the mount at ``/``, and it alone, read-only."""
    if _mount(None, b"/", None, _REMOUNT | _BIND | RDONLY | NOSUID, None) != 0:
        raise _failed("remount", "/")


def set_domain(name: bytes) -> None:
    """Set the NIS domain name, which is another name for the host."""
    if _libc.setdomainname(name, len(name)) != 0:
        raise _failed("setdomainname", name.decode())


def _call(*arguments: int | bytes) -> int:
    # Of an int, the upper half of its register is not defined.
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return int(_libc.syscall(*wide))


def _failed(what: str, where: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what} {where}: {os.strerror(number)}")
