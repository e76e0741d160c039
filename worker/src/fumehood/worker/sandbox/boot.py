"""The first moments of a zygote's process, before it becomes one by a second exec.

What needs ctypes is done here and outlives the exec, so that the zygote of a trusted profile, and
every sandbox after it, is a process that never loaded it: each shared library in a zygote makes
each fork dearer.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from fumehood.worker.sandbox import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from fumehood.worker.sandbox.confinement import Config, NamespaceError, Report

COMMAND = "from fumehood.worker.sandbox.{module} import main; main({fd})"
_GUARDED = "from fumehood.worker.sandbox.boot import guarded; guarded({fd})"
_CONFINED = "from fumehood.worker.sandbox.boot import confined; confined({fd}, {config!r})"
_FAILED = "namespaces/"  # before the stage, where HELLO_FAILED names a module


def confined_command(control_fd: int, config: Config) -> str:
    """The code that starts a zygote of the untrusted profile: what comes after ``python -c``."""
    return _CONFINED.format(fd=control_fd, config=dict(config))


def command(control_fd: int, *, guarded: bool) -> str:
    """The code that starts a zygote of the trusted profile: what comes after ``python -c``."""
    return (
        _GUARDED.format(fd=control_fd) if guarded else COMMAND.format(module="boot", fd=control_fd)
    )


def main(control_fd: int) -> NoReturn:
    """Adopt the orphans of sandboxes, then become the zygote on ``control_fd``."""
    kernel.become_subreaper()
    zygote = COMMAND.format(module="zygote", fd=control_fd)
    os.execv(sys.executable, [sys.executable, "-c", zygote])  # noqa: S606


def guarded(control_fd: int) -> NoReturn:
    """``main``, in a Landlock domain that no signal leaves: ``kill(-1, 9)`` spares the node.

    One domain for the zygote and all its sandboxes, taken on before the exec: it costs them
    nothing, and none of them has to load what it takes.
    """
    from fumehood.worker.sandbox import landlock

    try:
        with landlock.signals_only() as ruleset:
            landlock.restrict(ruleset.fd)
    except OSError:  # not in this kernel: what that means, ``fumehood doctor`` tells
        pass
    main(control_fd)


def confined(control_fd: int, config: Config) -> NoReturn:
    """Make namespaces, then become the zygote in them.

    It finds what was achieved by ``confinement.take_report``. What cannot be had is reported on
    ``control_fd`` as a HELLO_FAILED that ``failure_of`` reads.
    """
    from fumehood.worker.sandbox import namespaces
    from fumehood.worker.sandbox.confinement import REPORT, NamespaceError, hand_on

    def become(report: Report) -> NoReturn:
        os.environ[REPORT] = hand_on(report)
        main(control_fd)

    try:
        namespaces.confine(config, control_fd, become)
    except NamespaceError as exc:
        _report_failure(control_fd, exc)
        os._exit(1)


def _report_failure(control_fd: int, exc: NamespaceError) -> None:
    from fumehood.worker.sandbox import protocol

    parts = (_FAILED + exc.stage, (exc.strerror or "")[:2000], str(exc.errno or 0))
    try:
        os.write(control_fd, protocol.pack(protocol.HELLO_FAILED, *parts))
    except OSError:  # the manager is gone
        pass


def failure_of(parts: Sequence[str]) -> NamespaceError | None:
    """The failure that the parts of a HELLO_FAILED tell of; None for one of a task module."""
    from fumehood.worker.sandbox.confinement import NamespaceError

    name, why, number = parts
    if not name.startswith(_FAILED):
        return None
    stage = name.removeprefix(_FAILED)
    return NamespaceError(stage, int(number), why)
