"""A scene: profile, user and masks, and the mechanisms that are lost in it.

What is lost is asked of the kernel here, and not of the sandbox: its own word is what is tested.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from hostile.case import Profile

User = Literal["root", "nobody"]

NOBODY = 65534
#: The masks that are tried one at a time.
MASKS: tuple[tuple[str, ...], ...] = (
    (), ("cgroup",), ("cgroup-memory",), ("cgroup-pids",), ("landlock",), ("userns",),
    ("seccomp",), ("pidfd",),
)  # fmt: skip

_CGROUPS = Path("/sys/fs/cgroup")
_LANDLOCK_CREATE, _LANDLOCK_VERSION = 444, 1
_LANDLOCK_SCOPES = 6  # the ABI that can deny signals and abstract sockets
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Scene:
    """Where and how cases are run. The user is whoever runs this process."""

    profile: Profile
    disable: tuple[str, ...] = ()

    @property
    def lost(self) -> frozenset[str]:
        """The mechanisms of ``case.MECHANISMS`` that are not to be had."""
        masked = set(self.disable)
        found = masked & {"pidfd", "seccomp"}
        root = os.geteuid() == 0
        if not root:
            found.add("root")
        if "cgroup" in masked or not _may_make_cgroup(""):
            found |= {"cgroup", "cgroup-memory", "cgroup-pids"}
        for controller, mask in (("memory", "cgroup-memory"), ("pids", "cgroup-pids")):
            if mask in masked or not _may_make_cgroup(controller):
                found.add(mask)
        if "landlock" in masked or _landlock_version() < _LANDLOCK_SCOPES:
            found.add("landlock")
        if not root and ("userns" in masked or not _may_make_namespaces()):
            found.add("namespaces")
        if not Path("/proc/sys/kernel/seccomp").exists():
            found.add("seccomp")
        return frozenset(found)

    def __str__(self) -> str:
        user = "root" if os.geteuid() == 0 else "nobody"
        without = f" without {','.join(self.disable)}" if self.disable else ""
        return f"{self.profile} {user}{without}"


@cache
def _may_make_cgroup(controller: str) -> bool:
    """Whether this process may make cgroups: with a controller, or for killing alone."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller and controller in names.split(","):
            return os.access(_CGROUPS / controller / path.lstrip("/"), os.W_OK)
        if names:
            continue
        for top in (_CGROUPS / "unified", _CGROUPS):
            own = top / path.lstrip("/")
            if not (own / "cgroup.controllers").exists():
                continue
            offered = (own / "cgroup.controllers").read_text().split()
            if (not controller or controller in offered) and os.access(own, os.W_OK):
                return True
    return False


@cache
def _landlock_version() -> int:
    return int(_libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION))


@cache
def _may_make_namespaces() -> bool:
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000 | 0x20000) != 0)"
    return subprocess.run([sys.executable, "-S", "-c", code], check=False).returncode == 0
