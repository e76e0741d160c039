"""What a sandbox of its own has: mounts, temporary files, System V IPC, an id.

All of it belongs to two namespaces that the sandbox alone is in, and so ends with it: nothing has
to be swept, and nothing can be left behind. It takes few system calls in a fresh process, for
``/tmp`` and its like are links into one place (``newroot``): one mount serves them all. Functions
are bound to names of this module, for each look-up elsewhere touches a page more: 2 us each.
"""

from __future__ import annotations

import errno
import os

from fumehood.worker.sandbox import mounts
from fumehood.worker.sandbox.confinement import HOME, SPACE, TMPDIR, NamespaceError, Report

_unshare, _mount, _mkdir, _chdir = mounts.unshare, mounts.mount, os.mkdir, os.chdir
_setresgid, _setresuid = os.setresgid, os.setresuid
_INODES_OURS = 3  # the root and two folders
_TARGET, _TMPDIR, _HOME = (os.fsencode(path) for path in (SPACE, TMPDIR, HOME))
_FLAGS = mounts.NOSUID | mounts.NODEV
_namespaces = 0
_mounts = False
_ids: dict[int, int] = {}  # of each slot that has one
_own = 0  # where slots have none


def prepare(report: Report) -> None:
    """In the zygote, before it forks: what ``enter_job`` is to do, by what boot has achieved."""
    global _namespaces, _mounts, _own  # noqa: PLW0603 - an object costs a fresh process more
    _mounts = report["mount"]
    _ids.clear()
    _ids.update((k, report["first"] + k) for k in range(1, report["slots"] + 1))
    _own = os.getuid()
    _namespaces = (mounts.NEWNS if report["mount"] else 0) | (mounts.NEWIPC if report["ipc"] else 0)
    # The first call of a C function maps pages that those in sandboxes then find.
    mounts.unshare(0)


def enter_job(slot: int, tmp_bytes: int, inodes: int) -> None:
    """In a fresh sandbox: its own mounts and IPC, its own empty folders, its slot's id.

    ``slot`` counts from 1. ``tmp_bytes`` is what all its files may take, in whole pages and at
    least one; ``inodes`` is how many files and folders it may make. The working folder is then
    ``confinement.HOME``. Raises ``NamespaceError``.
    The parent-death signal is gone afterwards, and the process is not dumpable: it is no longer
    readable in /proc by its own kind, and leaves no core.
    """
    stage = "job-identity"
    try:
        uid = _ids[slot] if _ids else _own
        stage = "job-namespaces"
        _unshare(_namespaces)
        stage = "job-tmp"
        if _mounts:
            _mount(b"tmpfs", _TARGET, _FLAGS, options(tmp_bytes, inodes, uid))
        stage = "job-identity"
        if _ids:
            # Supplementary groups are gone since boot.
            _setresgid(uid, uid, uid)
            _setresuid(uid, uid, uid)
        stage = "job-tmp"
        if _mounts:
            # By their owner: nothing has to be handed over to it.
            _mkdir(_TMPDIR)
            _mkdir(_HOME)
            _chdir(_HOME)
    except KeyError:
        raise NamespaceError(stage, errno.EINVAL, f"slot {slot} has no id") from None
    except OSError as exc:
        raise NamespaceError(stage, exc.errno or 0, exc.strerror or "") from exc


def options(tmp_bytes: int, inodes: int, uid: int) -> bytes:
    """Of the mount of a tmpfs that belongs to a user and a group of one number."""
    size, count = max(tmp_bytes, 1), max(inodes, 0) + _INODES_OURS  # 0 would mean no limit
    return b"size=%d,nr_inodes=%d,mode=0700,uid=%d,gid=%d" % (size, count, uid, uid)
