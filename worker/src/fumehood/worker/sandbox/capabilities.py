"""Giving up root's privileges, for good.

A process has them in several sets. With the permitted and inheritable ones empty, nothing is
effective and nothing ambient; with the bounding one empty, no program that it executes brings any
back, root's own included. The bounding set and the securebits can only be given up by who still
holds CAP_SETPCAP: before the user id changes, or in the zygote, whose children inherit both.

Of the securebits NO_SETUID_FIXUP is left alone on purpose. It would have ``setresuid`` keep the
capabilities that it now clears by itself, and guards nothing once the permitted set is empty.
"""

from __future__ import annotations

import ctypes
from errno import EINVAL, EPERM
from struct import pack

from fumehood.worker.sandbox.syscalls import call

_PR_SET_SECUREBITS, _PR_CAPBSET_DROP = 28, 24
# linux/securebits.h: NOROOT, KEEP_CAPS and NO_CAP_AMBIENT_RAISE; each has its lock in the next bit.
_NOROOT, _KEEP_CAPS, _NO_AMBIENT = 1 << 0, 1 << 4, 1 << 6
_SECUREBITS = _NOROOT | _NOROOT << 1 | _KEEP_CAPS << 1 | _NO_AMBIENT | _NO_AMBIENT << 1

# What capset(2) reads, made before any fork: a child pays for each page that it writes to.
_header = ctypes.create_string_buffer(pack("=Ii", 0x20080522, 0))  # _LINUX_CAPABILITY_VERSION_3
_nothing = ctypes.create_string_buffer(24)  # effective, permitted, inheritable: two words of each
_header_address, _nothing_address = ctypes.addressof(_header), ctypes.addressof(_nothing)
_bounded = False


def drop_bounding() -> bool:
    """Empty the bounding set and lock the securebits, so far as this process may; say if all of it.

    A fresh child pays 200 us for it, which is one call for each of 41 capabilities: for the zygote,
    then. Not before it enters a user namespace, for that fills the set again. Raises ``OSError``
    for anything but a lack of CAP_SETPCAP.
    """
    global _bounded  # noqa: PLW0603 - a fork inherits it together with what it tells of
    complete = True
    for step in (_lock_securebits, _empty_bounding_set):
        try:
            step()
        except OSError as exc:
            if exc.errno != EPERM:
                raise
            complete = False
    _bounded = complete
    return complete


def _lock_securebits() -> None:
    call("prctl", _PR_SET_SECUREBITS, _SECUREBITS)


def _empty_bounding_set() -> None:
    for capability in range(64):
        try:
            call("prctl", _PR_CAPBSET_DROP, capability)
        except OSError as exc:
            if exc.errno != EINVAL:
                raise
            return  # past the last one that this kernel has


def drop_all() -> None:
    """Give up every capability; a step that ``drop_bounding`` has taken is not taken again.

    The last step that may need a privilege: after changing user ids and mounting. Raises
    ``OSError``.
    """
    if not _bounded:
        drop_bounding()
    call("capset", _header_address, _nothing_address)


def held(pid: int | None = None) -> dict[str, int]:
    """The capability sets of a process, as bit masks by the names that /proc gives them.

    These are CapInh, CapPrm, CapEff, CapBnd and CapAmb. Raises ``OSError`` where there is no /proc,
    as in a sandbox: ask from outside then, by ``pid``.
    """
    with open(f"/proc/{pid or 'self'}/status", encoding="utf-8") as file:
        fields = (line.split(":") for line in file if line.startswith("Cap"))
        return {name: int(mask, 16) for name, mask in fields}


def has_none(pid: int | None = None) -> bool:
    """Whether a process holds no capability and can gain none by executing a program.

    A process that never was privileged holds none, but still has its bounding set; this says False
    of it, and no_new_privs is what keeps it from gaining. Raises as ``held`` does.
    """
    return not any(held(pid).values())
