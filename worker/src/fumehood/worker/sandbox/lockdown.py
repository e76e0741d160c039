"""What an untrusted sandbox gives up, step by step, before it reads its job.

``prepare`` runs once in the zygote: what can be built or inherited is paid for there. ``lock`` runs
in each sandbox. A step that fails is a failed start, never the task's fault.
"""

from __future__ import annotations

import os
import sys
from errno import EPERM

from fumehood.worker.sandbox import capabilities, jobspace, kernel, landlock, seccomp
from fumehood.worker.sandbox.confinement import WRITABLE, NamespaceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import NoReturn

    from fumehood.worker.sandbox.confinement import Report

_BYTES_PER_INODE = 4096  # one file or folder for each page that its tmp may take
_INODES_LEAST = 1024

_JOB_STAGES = ("job-namespaces", "job-tmp", "job-identity")
#: What ``lock`` goes through, in this order, as far as the mechanisms are there.
STAGES = (*_JOB_STAGES, "capabilities", "landlock", "seccomp")
#: The stage that is to fail, to test what becomes of it; empty in production.
failing = ""

_ruleset = -1  # the descriptor of the Landlock rules; -1 where there are none
_filter: seccomp.Filter | None = None


def confine_zygote(disabled: Collection[str]) -> None:
    """In the zygote, before it imports anything: what it needs no more itself. Raises ``OSError``.

    Sandboxes inherit it, and pay nothing for it.
    """
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    capabilities.drop_bounding()
    if "seccomp" not in disabled:
        seccomp.install(seccomp.base_program())


def prepare(report: Report, disabled: Collection[str]) -> None:
    """In the zygote, as the last thing before it forks. Raises ``OSError``."""
    global _ruleset, _filter  # noqa: PLW0603 - an object costs a fresh process more
    filters = "seccomp" not in disabled
    # The filter denies System V IPC and message queues: no namespace has to hold them then.
    jobspace.prepare({**report, "ipc": report["ipc"] and not filters})
    if "landlock" not in disabled and landlock.abi() > 0:
        _ruleset = _rules(report).fd
    if filters:
        _filter = seccomp.Filter(seccomp.rest_program())


def _rules(report: Report) -> landlock.Ruleset:
    """Read and execute what is shown, write below the job's own mount alone."""
    if report["mount"]:
        return landlock.allow_list(execute=["/"], write=[WRITABLE, *_DEVICES])
    code = [path for path in (*sys.path, sys.prefix, sys.base_prefix) if path.startswith("/")]
    return landlock.allow_list(execute=[*_SYSTEM, *code], read=["/proc"], write=_DEVICES)


_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ssl", "/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def _fail() -> NoReturn:
    raise PermissionError(EPERM, os.strerror(EPERM))


def lock(slot: int, tmp: int) -> None:
    """In a sandbox: enter its own space, then give up every right that it does not need.

    ``slot`` is the number of the seat, ``tmp`` the bytes of its temporary folders. Raises
    ``NamespaceError``, whose stage is one of ``STAGES``.
    """
    if failing in _JOB_STAGES:
        raise NamespaceError(failing, EPERM)
    jobspace.enter_job(slot, tmp, max(_INODES_LEAST, tmp // _BYTES_PER_INODE))
    stage = "capabilities"
    try:
        if failing == stage:
            _fail()
        capabilities.drop_all()
        if _ruleset >= 0:
            stage = "landlock"
            if failing == stage:
                _fail()
            landlock.restrict(_ruleset)
        if _filter is not None:
            stage = "seccomp"
            if failing == stage:
                _fail()
            _filter.install()
    except OSError as exc:
        raise NamespaceError(stage, exc.errno or 0, exc.strerror or "") from exc
