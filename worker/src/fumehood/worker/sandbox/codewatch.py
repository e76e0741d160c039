"""Which files the code of a zygote came from, and whether they are still the same.

A zygote notes each file as it is loaded (``Sources``, with ``census``) and tells its manager, which
looks at them every few seconds (``CodeWatch``) and starts a new zygote when they have changed. What
a file was is noted just before it is read: a deploy during the imports is seen as a change, too.
"""

from __future__ import annotations

import os
import sys

from fumehood.worker.sandbox.holders import variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import ModuleSpec

    #: When a file was modified, in nanoseconds since 1970, and its size in bytes. None: no file.
    Stamp = tuple[int, int] | None

_SETTLED = 2  # looks in a row that must find the same, for a change to be reported
_SETTLED_WITHOUT = 5  # the same while a file is missing: a deploy may be putting it back
_OURS = ("common", "broker", "client", "worker", "dashboard")
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def stamp(path: str) -> Stamp:
    """What ``path`` is at this moment; None when there is no such file, or it cannot be seen."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class Sources:
    """The files that modules were loaded from. In a zygote.

    ``Census(sources.note)`` fills it while modules are imported.
    """

    def __init__(self) -> None:
        self._stamps: dict[str, Stamp] = {}

    def note(self, spec: ModuleSpec) -> None:
        """Note the file of a module that is about to be executed."""
        if spec.has_location and type(spec.origin) is str:
            self._note(spec.origin)

    def _note(self, path: str) -> None:
        now = stamp(path)
        if now is None:  # perhaps inside an archive, which then is the file
            path = _archive_of(path)
            now = stamp(path) if path else None
        if now is not None:
            self._stamps.setdefault(os.path.abspath(path), now)

    def watched(self, task_modules: Sequence[str]) -> dict[str, Stamp]:
        """Path -> stamp of the files to watch, in plain values.

        All of those that belong to the top-level packages of ``task_modules``, wherever these are,
        and of the others those that were not installed: neither the standard library, nor what is
        below site-packages. Nothing of this project, the other half of which runs in the manager.
        """
        for name in list(sys.modules):
            path = variables(name).get("__file__")
            if type(path) is str and os.path.abspath(path) not in self._stamps:
                self._note(path)  # loaded in some way of its own
        roots, ours = _roots(task_modules), _own_folders()
        return {
            path: now
            for path, now in self._stamps.items()
            if not path.startswith(ours) and (path.startswith(roots) or not _is_installed(path))
        }


def _archive_of(path: str) -> str:
    """The file that ``path`` goes through as if it were a folder; empty if there is none."""
    while len(path) > 1 and not os.path.exists(path):
        path = os.path.dirname(path)
    return path if os.path.isfile(path) else ""


def _folders(package: str) -> list[str]:
    """Where a package has its modules: several folders, if it is a namespace package."""
    try:
        return [os.path.abspath(path) for path in variables(package).get("__path__", ())]
    except Exception:  # a ``__path__`` of its own making
        return []


def _roots(task_modules: Sequence[str]) -> tuple[str, ...]:
    """What the paths of files begin with that belong to the task modules' top-level packages."""
    roots: list[str] = []
    for top in {name.partition(".")[0] for name in task_modules}:
        for folder in _folders(top):
            below = folder + os.sep
            roots.append(below if os.path.isdir(folder) else _archive_of(folder))
        path = variables(top).get("__file__")
        if type(path) is str:
            roots.append(os.path.abspath(path))
    return tuple(filter(None, roots))


def _own_folders() -> tuple[str, ...]:
    folders = [folder for name in _OURS for folder in _folders(f"fumehood.{name}")]
    return tuple(folder + os.sep for folder in folders)


def _is_installed(path: str) -> bool:
    library = os.path.dirname(os.__file__) + os.sep
    return path.startswith(library) or any(part in path for part in _INSTALLED)


class CodeWatch:
    """Looks whether files are still what they were. In the manager; for one thread at a time.

    ``files`` maps paths to stamps, as ``Sources.watched`` gives them.
    """

    def __init__(self, files: Mapping[str, Stamp]) -> None:
        self._files = dict(files)
        self._differing: dict[str, Stamp] = {}
        self._agreed = 0  # looks in a row that found the same

    def __len__(self) -> int:
        return len(self._files)

    def changed(self) -> list[str]:
        """Look once: the paths that differ from what was loaded, sorted; none while they settle.

        A change is reported when two looks in a row agree on all that differs, and as long as it
        lasts; while files are missing, when five do. So nobody starts halfway through a deploy, if
        looks are further apart than the files that it writes.
        """
        differing = {path: now for path, was in self._files.items() if (now := stamp(path)) != was}
        self._agreed = self._agreed + 1 if differing == self._differing else 1
        self._differing = differing
        needed = _SETTLED_WITHOUT if None in differing.values() else _SETTLED
        return sorted(differing) if self._agreed >= needed else []

    def digest(self) -> str:
        """What the last look found, in 32 hexadecimal digits: before the first, what was loaded.

        Equal digests are equal code, as far as stamps tell: what failed to start once need not be
        tried again before this changes.
        """
        from hashlib import blake2b  # a shared library, which no zygote should load

        found = blake2b(digest_size=16)
        for path, now in sorted((self._files | self._differing).items()):
            found.update(f"{path}\0{now}\0".encode(errors="surrogateescape"))
        return found.hexdigest()
