"""The ledger of a census: what was seen to change, and by whom, until it is known what is left.

Loaded when something changed for the first time.
"""

from __future__ import annotations

import os
import sys
import time

from fumehood.worker.sandbox import holders, inspection, killer, known_libraries
from fumehood.worker.sandbox.findings import SOMEWHERE, Event, findings_of
from fumehood.worker.sandbox.process_state import (
    by_field,
    current_wakeup_fd,
    shared_mappings,
    signals_changed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from fumehood.worker.sandbox.findings import Finding, Kind
    from fumehood.worker.sandbox.known_libraries import Library
    from fumehood.worker.sandbox.process_state import Observer

_GRACE = 0.05  # seconds for threads that are about to end: one may outlive its join for a moment
_OPEN = ("file", "socket")
_PAGE = os.sysconf("SC_PAGESIZE")
_ALIASES = ("SIGIOT", "SIGCLD", "SIGPOLL")  # of SIGABRT, SIGCHLD and SIGIO
_TIMERS = ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")
_SETTINGS: dict[Kind, str] = {
    "cwd": "cwd", "umask": "umask", "locale": "locale", "trace": "trace", "itimer": "timers",
}  # fmt: skip


class Ledger:
    """Collects events while modules are imported, and makes findings of what is left of them.

    ``threads_left``, after ``close``: how many threads there are that were not at the start.
    """

    def __init__(self, start: Observer) -> None:
        self.threads_left = 0
        self._start = start
        self._threads = set(start.threads)
        self._fds = dict(start.fds)
        self._events: list[Event] = []
        self._touched: set[str] = set()  # the modules with threads or descriptors among them
        self._module = SOMEWHERE
        self._through: tuple[str, ...] = ()

    def note(
        self, before: tuple[Any, ...], after: tuple[Any, ...], executing: Sequence[str]
    ) -> None:
        """Find out what changed between two looks; the last of ``executing`` did it."""
        self._module = executing[-1] if executing else SOMEWHERE
        self._through = tuple(executing[:-1])
        was, now = by_field(before), by_field(after)
        if was["threads"] != now["threads"]:
            self._note_threads()
        if was["fds"] != now["fds"]:
            self._note_descriptors()
        for number in signals_changed(was, now):
            self._add("signal", number, _signal_name(number))
        for pid in now["children"] - was["children"]:
            line = inspection.command(pid)
            self._add("child", pid, f"{line[:100]} (pid {pid})", known_libraries.by_command(line))
        for key in _differing(was["environ"], now["environ"]):
            self._add("environ", key, os.fsdecode(key))  # never its value, which may be a secret
        for kind, field in _SETTINGS.items():
            if was[field] != now[field]:
                self._add(kind, None, _setting(kind, now[field]))

    def recount(self, executing: Sequence[str]) -> None:
        """Look closer at a module that left things before: as many need not be the same ones."""
        if executing and executing[-1] in self._touched:
            self._module, self._through = executing[-1], tuple(executing[:-1])
            self._note_threads()
            self._note_descriptors()

    def close(
        self, first: tuple[Any, ...], last: tuple[Any, ...], modules: Sequence[str]
    ) -> list[Finding]:
        """What is left of all that was noted, at the end of importing ``modules``."""
        self._module, self._through = SOMEWHERE, ()
        self._note_threads()
        self._note_descriptors()
        if current_wakeup_fd() != self._start.wakeup_fd:
            self._add("signal", None, "all (signal.set_wakeup_fd)")
        self._note_mappings(modules)
        self._wait_for_threads()
        was, now = by_field(first), by_field(last)
        now["signals"] = {None, *signals_changed(was, now)}
        now["environs"] = set(_differing(was["environ"], now["environ"]))
        left = [event for event in self._events if self._is_left(event, was, now)]
        self.threads_left = sum(event.kind == "thread" for event in left)
        return findings_of(_explained(left))

    def _is_left(self, event: Event, was: dict[str, Any], now: dict[str, Any]) -> bool:
        if event.kind == "thread":
            return inspection.is_alive(event.key)
        if event.kind in _OPEN:
            fd, link = event.key
            return fd in self._fds and bool(self._fds[fd] == link)
        if event.kind == "child":
            return killer.is_alive(event.key)
        if event.kind == "signal":
            return bool(event.key in now["signals"])
        if event.kind == "environ":
            return bool(event.key in now["environs"])
        if event.kind in _SETTINGS:
            field = _SETTINGS[event.kind]
            changed: bool = was[field] != now[field]
            return changed
        return True  # a mapping, which was seen in the end

    def _add(self, kind: Kind, key: Any, text: str, library: Library | None = None) -> None:
        origin = self._module, self._through
        if kind == "thread" or kind in _OPEN:
            self._touched.add(self._module)
        self._events.append(Event(kind, key, text, origin, library))

    # --- what a look only counts --------------------------------------------------------------

    def _note_threads(self) -> None:
        now = set(os.listdir("/proc/self/task"))
        for tid in sorted(now - self._threads, key=int):
            thread = inspection.thread(tid)
            library = (
                known_libraries.by_thread(thread.name)
                or known_libraries.by_modules((*thread.modules, self._module))
                or (known_libraries.by_file(inspection.loaded_files()) if thread.is_of_c else None)
            )
            self._add("thread", tid, thread.text, library)
        self._threads = now

    def _note_descriptors(self) -> None:
        now = self._start.open_files()
        for fd, link in sorted(now.items()):
            if self._fds.get(fd) != link:
                kind: Kind = "socket" if inspection.is_socket(link) else "file"
                text = f"{inspection.descriptor(link)} (descriptor {fd})"
                self._add(kind, (fd, link), text, known_libraries.by_modules((self._module,)))
        self._fds = now

    def _note_mappings(self, modules: Sequence[str]) -> None:
        """Shared memory is seen in the end only, and told by the objects that modules hold."""
        new = [value for key, value in shared_mappings().items() if key not in self._start.shared]
        owners = _shared_objects(modules) if new else []
        for size, path in new:
            is_lock = path.startswith(known_libraries.SEMAPHORE)
            owner = next((each for each in owners if each[0] == (0 if is_lock else size)), None)
            library = known_libraries.by_shared_memory(path)
            text = f"{path or 'without a name'} ({size} bytes)"
            self._module = SOMEWHERE
            if owner is not None:
                owners.remove(owner)
                self._module, text = owner[1], f"{text}, held as {owner[2]}"
            self._add("mapping", None, text, library)

    def _wait_for_threads(self) -> None:
        deadline = time.monotonic() + _GRACE
        unknown = [e.key for e in self._events if e.kind == "thread" and inspection.is_of_c(e.key)]
        while any(map(inspection.is_alive, unknown)) and time.monotonic() < deadline:
            time.sleep(0.001)


def _explained(events: list[Event]) -> list[Event]:
    """The same, with nameless descriptors laid at the door of what else their module left."""
    by_origin: dict[Any, list[Event]] = {}
    for event in events:
        by_origin.setdefault(event.origin, []).append(event)
    return [_explain(event, by_origin[event.origin]) for event in events]


def _explain(event: Event, same: list[Event]) -> Event:
    if (
        event.library is not None
        or event.kind not in _OPEN
        or not inspection.is_nameless(event.key[1])
    ):
        return event
    library: Library | None = None
    of_threads = {each.library for each in same if each.kind == "thread"}
    if inspection.look_like_a_loop([each.key[1] for each in same if each.kind in _OPEN]):
        library = known_libraries.EVENT_LOOP
    elif len(of_threads) == 1:
        library = of_threads.pop()
    if library is None:
        return event
    return Event("file", event.key, event.text, event.origin, library)


def _shared_objects(modules: Sequence[str]) -> list[tuple[int, str, str]]:
    """Size in whole pages, or 0 for a lock, then module and name, of what shares memory."""
    mmap: Any = getattr(sys.modules.get("mmap"), "mmap", None)
    lock: Any = getattr(sys.modules.get("_multiprocessing"), "SemLock", None)
    # What multiprocessing holds itself says nothing of who asked for it.
    names = [name for name in modules if not name.startswith("multiprocessing")]
    found: list[tuple[int, str, str]] = []
    for module, name, value in holders.find(names, lambda each: type(each) in (mmap, lock)):
        held: Any = value
        if type(held) is lock:
            found.append((0, module, name))
            continue
        try:
            found.append((-(-len(held) // _PAGE) * _PAGE, module, name))
        except ValueError:  # it is closed
            pass
    return found


def _differing(one: dict[Any, Any], other: dict[Any, Any]) -> list[Any]:
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def _signal_name(number: int) -> str:
    for name, value in vars(sys.modules["_signal"]).items():
        if value == number and name[:3] == "SIG" and name[3] != "_" and name not in _ALIASES:
            return name
    return f"signal {number}"


def _setting(kind: Kind, value: Any) -> str:
    if kind == "umask":
        return f"{value:#05o}"
    if kind == "itimer":
        return ", ".join(name for name, on in zip(_TIMERS, value, strict=True) if on)
    if kind == "trace":
        names = ("a trace function", "a profile function")
        return " and ".join(name for name, off in zip(names, value, strict=True) if not off)
    return str(value) or "one that is removed"
