"""The state of this process that a fork inherits or breaks on, looked at by a dozen system calls.

For ``census``, in a zygote: what is loaded here, each sandbox is forked with.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from _locale import LC_ALL, setlocale

from fumehood.worker.sandbox import killer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import SIG_BLOCK, getitimer, getsignal, pthread_sigmask, set_wakeup_fd
    from typing import Any
else:
    from _signal import SIG_BLOCK, getitimer, getsignal, pthread_sigmask, set_wakeup_fd

#: What ``Observer.look`` returns, in this order.
FIELDS: tuple[str, ...] = (
    "threads", "fds", "umask", "handlers", "blocked", "masks", "cwd", "timers", "locale", "trace",
    "faults", "children", "environ",
)  # fmt: skip

TIMERS = (0, 1, 2)  # ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF
_STOPPED = (0.0, 0.0)
_SIGNALS = range(1, 65)
_OF_THE_C_LIBRARY = (32, 33)  # which it takes with the first thread, and nobody else may
_NONE: frozenset[int] = frozenset()
_ANY_CHILD = os.WEXITED | os.WNOHANG | os.WNOWAIT
_TASKS, _FDS, _STATUS = "/proc/self/task", "/proc/self/fd", "/proc/self/status"
_STATUS_READ = 4096  # bytes at once: the usual size, for a large buffer is slow to come by


class Observer:
    """Looks at this process. Holds two descriptors until ``close``.

    The attributes are the state at the beginning, in full: ``threads`` (their ids as text), ``fds``
    (descriptor -> link), ``environ``, ``shared`` (memory), ``blocked`` (signals), ``wakeup_fd``,
    ``catches_faults``. Raises ``OSError`` where there is no /proc.
    """

    def __init__(self) -> None:
        tasks, fds = self._open()
        # A directory has a link for each directory in it, and here for each thread. The size of
        # the other is the number of descriptors since Linux 6.2. Where not, they are listed.
        self._links = tasks.st_nlink == len(os.listdir(_TASKS)) + 2
        self._sizes = fds.st_size == len(os.listdir(_FDS)) - 1
        self.threads = frozenset(os.listdir(_TASKS))
        self.fds = self.open_files()
        self.environ = self._copied = dict(environment())
        self.shared = shared_mappings()
        self._masks = signal_masks()
        self.blocked = pthread_sigmask(SIG_BLOCK, ())
        self.wakeup_fd = current_wakeup_fd()
        self.catches_faults = faulthandler.is_enabled()
        self._handlers = tuple(map(getsignal, _SIGNALS))
        self._locale = setlocale(LC_ALL)

    def look(self, *, deep: bool = False) -> tuple[Any, ...]:
        """The state in small, as ``FIELDS`` names it: equal as long as nothing has changed.

        Made for speed: what changes by way of a module is not asked before that is loaded, and only
        a ``deep`` look sees what C code alone did to signals.
        """
        threads, fds = self._counts()
        loaded = sys.modules
        signals = "signal" in loaded
        try:
            os.waitid(os.P_ALL, 0, _ANY_CHILD)
            children = frozenset(killer.children_of(os.getpid()))
        except ChildProcessError:
            children = _NONE
        if deep:
            self._masks = signal_masks()
        environ = environment()
        if environ != self._copied:
            self._copied = dict(environ)
        return (
            threads,
            fds,
            _umask() if threads == 1 else umask_of(status()),
            tuple(map(getsignal, _SIGNALS)) if signals else self._handlers,
            pthread_sigmask(SIG_BLOCK, ()) if signals else self.blocked,
            self._masks,
            working_directory(),
            (getitimer(0) != _STOPPED, getitimer(1) != _STOPPED, getitimer(2) != _STOPPED),
            setlocale(LC_ALL) if "locale" in loaded else self._locale,
            (sys.gettrace() is None, sys.getprofile() is None),
            faulthandler.is_enabled(),
            children,
            self._copied,
        )

    def _counts(self) -> tuple[int, int]:
        """How many threads and descriptors there are."""
        try:
            tasks, fds = os.fstat(self._tasks_fd), os.fstat(self._fds_fd)
            lost = (tasks.st_ino, fds.st_ino) != self._own
        except OSError:
            tasks, fds = self._open()
            lost = False
        if lost:  # a module closed all descriptors, and has put others in the place of these
            tasks, fds = self._open()
        return (
            tasks.st_nlink - 2 if self._links else len(os.listdir(_TASKS)),
            fds.st_size if self._sizes else len(os.listdir(_FDS)),
        )

    def _open(self) -> tuple[os.stat_result, os.stat_result]:
        self._tasks_fd, self._fds_fd = os.open(_TASKS, os.O_RDONLY), os.open(_FDS, os.O_RDONLY)
        tasks, fds = os.fstat(self._tasks_fd), os.fstat(self._fds_fd)
        self._own = tasks.st_ino, fds.st_ino
        return tasks, fds

    def open_files(self) -> dict[int, str]:
        """Descriptor -> what /proc says it is, for all but this observer's own."""
        found: dict[int, str] = {}
        for name in os.listdir(_FDS):
            try:
                found[int(name)] = os.readlink(f"{_FDS}/{name}")
            except OSError:  # the descriptor that listed them
                pass
        for own in (self._tasks_fd, self._fds_fd):
            found.pop(own, None)
        return found

    def sees_what_looks_miss(self) -> bool:
        """Whether there is more, or other, than at the beginning of what ``look`` leaves out."""
        return (
            shared_mappings() != self.shared
            or self.open_files() != self.fds
            or current_wakeup_fd() != self.wakeup_fd
        )

    def close(self) -> None:
        """Give the descriptors back."""
        self._counts()  # makes sure that they are its own
        os.close(self._tasks_fd)
        os.close(self._fds_fd)


def by_field(look: tuple[Any, ...]) -> dict[str, Any]:
    """What ``Observer.look`` returned, under the names of its fields."""
    return dict(zip(FIELDS, look, strict=True))


def shared_mappings() -> dict[str, tuple[int, str]]:
    """Address range -> (bytes, path) of the memory that is writable, and shared after a fork."""
    found: dict[str, tuple[int, str]] = {}
    with open("/proc/self/maps", "rb") as file:
        for line in file:
            if b" rw-s " in line or b" rwxs " in line:
                where, _, _, _, _, *path = os.fsdecode(line).split(maxsplit=5)
                low, _, high = where.partition("-")
                found[where] = (int(high, 16) - int(low, 16), "".join(path).strip())
    return found


def environment() -> dict[Any, Any]:
    """The dictionary inside ``os.environ``: to compare it costs a twentieth of comparing that."""
    data: dict[Any, Any] = getattr(os.environ, "_data", None) or dict(os.environ)
    return data


def current_wakeup_fd() -> int:
    """The descriptor that signals are written to, or -1."""
    fd = set_wakeup_fd(-1)
    try:
        set_wakeup_fd(fd)
    except (OSError, ValueError):  # it was closed meanwhile
        pass
    return fd


def working_directory() -> str:
    """The current directory; empty when it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def status() -> bytes:
    """What /proc tells of this process."""
    fd = os.open(_STATUS, os.O_RDONLY)
    try:
        text = b""
        while part := os.read(fd, _STATUS_READ):
            text += part
        return text
    finally:
        os.close(fd)


def umask_of(text: bytes) -> int:
    """The umask in a ``status``, which tells it without changing it for a moment."""
    return int(text.partition(b"\nUmask:")[2].partition(b"\n")[0], 8)


def _umask() -> int:
    """The umask of a process with one thread: nobody is there whom the moment could harm."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def signal_masks() -> tuple[int, ...]:
    """Which signals are blocked, ignored and caught, a bit for each; C code's are among them."""
    lines = status().partition(b"\nSigBlk:")[2].partition(b"\nCapInh:")[0].split(b"\n")
    return tuple([int(line.rpartition(b":")[2], 16) for line in lines])


def signals_changed(before: dict[str, Any], after: dict[str, Any]) -> list[int]:
    """The signals with other handlers, or with other bits in one of the masks."""
    bits = 0
    for one, two in zip(before["masks"], after["masks"], strict=True):
        bits |= one ^ two
    was, now = before["handlers"], after["handlers"]
    changed = [n for n in _SIGNALS if bits >> n - 1 & 1 or was[n - 1] != now[n - 1]]
    return [n for n in changed if n not in _OF_THE_C_LIBRARY]
