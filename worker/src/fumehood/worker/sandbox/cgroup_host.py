"""Where this process stands in the cgroup hierarchies of its host, v1 and v2."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_ESCAPED = re.compile(r"\\([0-7]{3})")  # blanks and the like in mountinfo, as octal numbers


@dataclass(frozen=True, slots=True)
class Place:
    """The cgroup of this process in one hierarchy."""

    own: Path  # its directory
    name: str  # as /proc/self/cgroup has it; "/" is the top of what this process may see


@dataclass(frozen=True, slots=True)
class Host:
    """The hierarchies that are mounted where this process sees its own cgroup."""

    v2: Place | None = None
    v1: Mapping[str, Place] = field(default_factory=dict[str, Place])  # by controller


def read() -> Host:
    """The host as this process sees it. Raises ``OSError`` without /proc."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    return parse(mounts, own)


def parse(mountinfo: str, cgroup: str) -> Host:
    """The host that proc(5)'s two files describe.

    A container may see a part of a hierarchy only, and its own cgroup under the name that the host
    has for it: the mount says which part it is.
    """
    mounts = list(_mounts(mountinfo))
    v2: Place | None = None
    v1: dict[str, Place] = {}
    for line in cgroup.splitlines():
        _, controllers, name = line.split(":", 2)
        place = _find(mounts, set(controllers.split(",")) if controllers else None, name)
        if place is None:
            continue
        if controllers:
            v1.update(dict.fromkeys(controllers.split(","), place))
        else:
            v2 = place
    return Host(v2, v1)


def _mounts(mountinfo: str) -> Iterator[tuple[str, Path, set[str] | None]]:
    """Root within the hierarchy, mount point, and the options of a v1 mount."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, point = fields.split(" ")[3:5]
            names = set(options.split(",")) if kind == "cgroup" else None
            yield _plain(root), Path(_plain(point)), names


def _find(
    mounts: list[tuple[str, Path, set[str] | None]], controllers: set[str] | None, name: str
) -> Place | None:
    for root, point, options in mounts:
        if controllers is None or options is None:
            fits = controllers is options
        else:
            fits = controllers <= options
        below = _below(name, root)
        if fits and below is not None:
            return Place(point / below, name)
    return None


def _below(name: str, root: str) -> str | None:
    """The way from a mount's root to a cgroup; None where that is not below it."""
    if ".." in name.split("/"):  # outside of the cgroup namespace
        return None
    root = root.rstrip("/")
    if name == root or name.startswith(f"{root}/"):
        return name[len(root) :].lstrip("/")
    return None


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
