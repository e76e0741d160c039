"""What the namespaces of a zygote are asked for, and what was achieved: the words of both.

Light on purpose: the manager, the boot process, the zygote and every sandbox load it.
"""

from __future__ import annotations

import errno
import os
from marshal import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence
    from typing import TypedDict

    class Config(TypedDict):
        """What a zygote's namespaces are made with. Plain values: it travels as a literal."""

        path: Sequence[str]  # the import path; shown unless it would show too much
        cwd: str  # shown by the same rule
        show: Sequence[str]  # further files and folders, shown whatever they are
        hide: Sequence[str]  # files and folders in what is shown, to be covered
        uids: int  # the host's id that root in there is; slot k is this one plus k
        slots: int  # how many slots have an id of their own; used by root only
        disabled: Sequence[str]  # mechanisms not to use: "userns", "mount_setattr"

    class Report(TypedDict):
        """Which namespaces a zygote has, and which ids its slots have there."""

        user: bool
        pid: bool
        net: bool
        mount: bool
        ipc: bool
        uts: bool
        cgroup: bool
        slots: int  # slots with an id of their own; 0 where all share the node's
        first: int  # the id of slot 0, as seen in there; slot k has this one plus k
        cwd: str  # the folder to be in: the node's own, or "/" where that is not shown
        errors: dict[str, str]  # what was not achieved, left out or refused -> why
else:  # ``typing`` is not for zygotes
    Config = Report = dict


#: Names the variable that carries the report from boot to the zygote, which takes it out.
REPORT = "FUMEHOOD_CONFINEMENT"

#: Every folder that a job may write to lies below it. For Landlock the rule has to be on this one:
#: the mount point itself, one below, is hidden by what is mounted there, and is never asked.
WRITABLE = "/run/sandbox"
#: Where the file system of each job is mounted.
SPACE = f"{WRITABLE}/job"
#: A job's working folder, and what its ``HOME`` should be.
HOME = f"{SPACE}/home"
#: What its ``TMPDIR`` should be. ``/tmp``, ``/dev/shm`` and their like are links to it.
TMPDIR = f"{SPACE}/tmp"  # noqa: S108 - below a mount of the job's own


class NamespaceError(OSError):
    """A step of the confinement is not to be had here: ``stage``, ``errno``, and a text.

    Stages, about in their order: ``uids``, ``user``, ``uid_map``, ``pid``, ``fork``, ``mount``,
    ``net``, ``ipc``, ``root``, ``proc``, ``code``, ``dev``, ``etc``, ``scratch``, ``pivot``,
    ``identity``, ``exec``, and ``inner`` for what was not foreseen; for each job ``job-identity``,
    ``job-namespaces``, ``job-tmp``.
    """

    def __init__(self, stage: str, number: int, detail: str = "") -> None:
        super().__init__(number, detail or os.strerror(number))
        self.stage = stage

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno or 0, str(self.errno))
        return f"namespaces, stage {self.stage}: {name}: {self.strerror}"


def hand_on(report: Report) -> str:
    """A report as the value of a variable."""
    return dumps(dict(report)).hex()


def take_report(environ: MutableMapping[str, str]) -> Report | None:
    """Take the report out of ``environ``; None for a zygote that has no namespaces of its own."""
    text = environ.pop(REPORT, None)
    if text is None:
        return None
    report: Report = loads(bytes.fromhex(text))  # noqa: S302 - from boot, in the same interpreter
    return report
