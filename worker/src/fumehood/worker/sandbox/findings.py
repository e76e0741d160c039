"""Findings of a census, in words: who left what behind, and what to do about it."""

from __future__ import annotations

from fumehood.common.values import Value
from fumehood.worker.sandbox.fault import clip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    from fumehood.worker.sandbox.known_libraries import Library

    Kind = Literal[
        "thread", "socket", "file", "signal", "cwd", "umask", "environ", "child", "mapping",
        "locale", "itimer", "trace",
    ]  # fmt: skip

#: The name under which things go whose module is not known.
SOMEWHERE = "the task modules"

_TEXT_MAX = 400  # characters of a detail
_LISTED_MAX = 5  # things of one finding that are named

#: What was done, to one thing and to several; a list of them follows.
_DETAILS: dict[Kind, tuple[str, str]] = {
    "thread": ("left a thread running: ", "left threads running: "),
    "socket": ("left open ", "left open "),
    "file": ("left open ", "left open "),
    "child": ("left a process running: ", "left processes running: "),
    "mapping": ("left shared memory: ", "left shared memory: "),
    "signal": ("changed what this signal does: ", "changed what these signals do: "),
    "cwd": ("changed the working directory to ", "changed the working directory to "),
    "umask": ("changed the umask to ", "changed the umask to "),
    "itimer": ("left a timer running: ", "left timers running: "),
    "environ": ("changed an environment variable: ", "changed environment variables: "),
    "locale": ("changed the locale to ", "changed the locale to "),
    "trace": ("set ", "set "),
}

_SERIOUS = ("thread", "socket", "file", "child", "mapping")

#: What each kind means in general, and what to do about it.
REMEDIES: dict[Kind, str] = {
    "thread": "it is in no sandbox, and locks that it holds at a fork stay locked there: start it "
    "inside the task",
    "socket": "it is closed in every sandbox: connect inside the task",
    "file": "it is closed in every sandbox: open it inside the task",
    "child": "it runs beside all jobs: start it inside the task",
    "mapping": "all jobs write to the same memory: make it inside the task",
    "signal": "it is put back before the first job: install handlers inside the task",
    "cwd": "it is put back before the first job: change it inside the task",
    "umask": "it is put back before the first job: change it inside the task",
    "itimer": "it is stopped before the first job, for it would end the zygote: start it inside "
    "the task",
    "environ": "it holds for every job of these modules, and for no others",
    "locale": "it holds for every job of these modules, and for no others",
    "trace": "every job runs under it, and slower: set it inside the task",
}


class Finding(Value):
    """One thing that importing ``module`` left behind; ``str()`` of it is one line.

    ``through`` is how it came to be imported: the task module first, ``module`` not in it.
    """

    __slots__ = ("detail", "kind", "module", "remedy", "through")

    kind: Kind
    module: str
    detail: str
    remedy: str
    through: tuple[str, ...]

    def __init__(
        self, kind: Kind, module: str, detail: str, remedy: str, through: tuple[str, ...] = ()
    ) -> None:
        self._set(kind=kind, module=module, detail=detail, remedy=remedy, through=through)

    @property
    def is_serious(self) -> bool:
        """Whether jobs may fail or meet through it; else it is put back, or every job has it."""
        return self.kind in _SERIOUS

    def __str__(self) -> str:
        by = f" (imported by {' > '.join(self.through)})" if self.through else ""
        return f"importing {self.module}{by} {self.detail}; {self.remedy}"


class Event(Value):
    """One thing seen to have changed, by a module and through which others this was imported.

    ``key`` tells later whether it is still so.
    """

    __slots__ = ("key", "kind", "library", "origin", "text")

    kind: Kind
    key: Any
    text: str
    origin: tuple[str, tuple[str, ...]]
    library: Library | None

    def __init__(
        self,
        kind: Kind,
        key: Any,
        text: str,
        origin: tuple[str, tuple[str, ...]],
        library: Library | None = None,
    ) -> None:
        self._set(kind=kind, key=key, text=text, origin=origin, library=library)


def findings_of(events: list[Event]) -> list[Finding]:
    """One finding for all events of one kind, module and library, in the order of the first."""
    groups: dict[tuple[Kind, tuple[str, tuple[str, ...]], Library | None], list[str]] = {}
    for event in events:
        groups.setdefault((event.kind, event.origin, event.library), []).append(event.text)
    found: list[Finding] = []
    for (kind, (module, through), library), texts in groups.items():
        remedy = REMEDIES[kind] if library is None else f"{library.why}; {library.remedy}"
        found.append(Finding(kind, module, _detail(kind, texts), remedy, through))
    return found


def _detail(kind: Kind, texts: list[str]) -> str:
    counts: dict[str, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    counted = kind == "thread"  # which may well have the same name; other things were seen again
    listed = [f"{text} ({n} times)" if counted and n > 1 else text for text, n in counts.items()]
    if len(listed) > _LISTED_MAX:
        listed[_LISTED_MAX:] = [f"{len(listed) - _LISTED_MAX} more"]
    one, many = _DETAILS[kind]
    detail = (one if len(texts if counted else counts) == 1 else many) + ", ".join(listed)
    # A name is anybody's: on one line it forges none in a log.
    return clip(" ".join(detail.split()), _TEXT_MAX)
