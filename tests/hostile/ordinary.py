"""Becoming an ordinary user, for a command of root's: uid 65534, no group, no capability.

An interpreter below a folder that only root may enter would be out of reach then. In a mount
namespace of its own such a folder is covered by an open one that holds what is needed and no more,
so that the command runs with the rights of nobody at all, and not with a capability to read.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from hostile.scene import NOBODY

_USER = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"),
    "--bounding-set=-all",
]


def can_become() -> bool:
    """Whether this process may start a command as an ordinary user."""
    return os.geteuid() == 0 and all(map(shutil.which, ("setpriv", "unshare", "mount")))


def command(arguments: Sequence[str], *, reach: Sequence[Path]) -> list[str]:
    """``arguments`` as run by an ordinary user who reaches the folders ``reach`` and Python."""
    needed = {Path(sys.base_prefix), Path(sys.prefix), *(path.resolve() for path in reach)}
    lines = ["set -eu", *_uncover(needed), f"exec {shlex.join([*_USER, *arguments])}"]
    return ["unshare", "--mount", "sh", "-c", "\n".join(lines)]


def _uncover(needed: set[Path]) -> list[str]:
    closed = {path: _closed_folder(path) for path in needed}
    lines: list[str] = []
    for folder in sorted({found for found in closed.values() if found is not None}):
        below = sorted(path for path in needed if closed[path] == folder)
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {_STASH}")
        for number, path in enumerate(below):
            lines.append(f"mkdir {_STASH}/{number} && mount --bind {path} {_STASH}/{number}")
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {folder}")
        for number, path in enumerate(below):
            lines.append(f"mkdir -p {path} && mount --move {_STASH}/{number} {path}")
        lines.append(f"umount {_STASH}")
    return lines


_STASH = "/mnt"


def _closed_folder(path: Path) -> Path | None:
    """The outermost folder above ``path`` that others may not enter."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return parent
    return None
