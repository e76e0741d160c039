"""An exception as bounded text, whatever its class does when it is asked to describe itself.

Attributes are read by the slots of ``BaseException`` itself: a subclass may shadow each of them
with a property that raises, lies or counts to a million.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any

MESSAGE_MAX = 8 << 10  # characters
TRACEBACK_MAX = 24 << 10  # characters; with the message it fits one inline frame as UTF-8
_NAME_MAX = 300  # characters
_NOTE_MAX = 1000  # characters
_FRAMES_MAX = 60
_CHAIN_MAX = 6  # causes of one exception
_PARTS_MAX = 24  # exceptions described in all, causes and members of groups alike
_MEMBERS_MAX, _NOTES_MAX = 10, 10

# Plain attribute access would find a subclass's own first.
_slots: dict[str, Any] = dict(BaseException.__dict__)
_members: Any = BaseExceptionGroup.__dict__["exceptions"]


def describe(exc: BaseException, skip: str) -> tuple[str, str, str]:
    """Type name, message and traceback of ``exc``; frames of the file ``skip`` are left out."""
    trace = _Description(skip).of(exc)
    return type_name(exc), clip(message_of(exc), MESSAGE_MAX), clip(trace, TRACEBACK_MAX)


def type_name(exc: BaseException) -> str:
    """The class as ``module.qualname``; without the module for built-in ones."""
    kind = type(exc)
    name = clip(str.__str__(type.__dict__["__qualname__"].__get__(kind)), _NAME_MAX)
    module = type.__dict__["__dict__"].__get__(kind).get("__module__", "")
    if type(module) is not str or module in ("builtins", "__main__", ""):
        return name
    return f"{clip(module, _NAME_MAX)}.{name}"


def message_of(exc: BaseException) -> str:
    """``str(exc)``, or a note in its place when that raises or gives no text."""
    try:
        text = str(exc)
        return text if type(text) is str else str.__str__(text)
    except BaseException:  # the task's own class may raise anything, SystemExit included
        return "<unprintable>"


def clip(text: str, size: int) -> str:
    """``text`` in about ``size`` characters, as UTF-8 can carry it; the middle is left out."""
    if len(text) > size:
        half = size // 2
        left_out = len(text) - 2 * half
        text = f"{text[:half]}\n... {left_out} characters are left out ...\n{text[-half:]}"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class _Description:
    """One exception with its causes and members, as long as there is room for them."""

    def __init__(self, skip: str) -> None:
        self._skip = skip
        self._left = _PARTS_MAX

    def of(self, exc: BaseException) -> str:
        """All of it, the first cause first, as Python prints it."""
        parts: list[str] = []
        seen: set[int] = set()
        current: BaseException | None = exc
        while current is not None and id(current) not in seen and len(parts) < _CHAIN_MAX:
            if self._left <= 0:
                break
            seen.add(id(current))
            parts.append(self._one(current))
            current = _cause(current)
        if current is not None and id(current) not in seen:
            parts.append("(more causes are left out)\n")
        joint = "\nThe above exception is the cause of, or was being handled at, this one:\n\n"
        return joint.join(reversed(parts))

    def _one(self, exc: BaseException) -> str:
        self._left -= 1
        frames = _frames(_slots["__traceback__"].__get__(exc), self._skip)
        lines = ["Traceback (most recent call last):\n", *frames] if frames else []
        lines.append(f"{type_name(exc)}: {clip(message_of(exc), MESSAGE_MAX)}\n")
        try:
            lines += [f"{clip(str(note), _NOTE_MAX)}\n" for note in _notes(exc)]
            lines += self._members(exc)
        except BaseException:  # what cannot be described is left out
            lines.append("<more that is unprintable>\n")
        return "".join(lines)

    def _members(self, exc: BaseException) -> Iterator[str]:
        if not issubclass(type(exc), BaseExceptionGroup):
            return
        members: tuple[BaseException, ...] = _members.__get__(exc)
        for member in members[:_MEMBERS_MAX]:
            if self._left <= 0:
                break
            yield "  contains " + self._one(member).replace("\n", "\n  ").rstrip() + "\n"
        else:
            if len(members) <= _MEMBERS_MAX:
                return
        yield f"  ({len(members)} in all)\n"


def _cause(exc: BaseException) -> BaseException | None:
    cause: BaseException | None = _slots["__cause__"].__get__(exc)
    if cause is not None or _slots["__suppress_context__"].__get__(exc):
        return cause
    context: BaseException | None = _slots["__context__"].__get__(exc)
    return context


def _notes(exc: BaseException) -> Iterator[object]:
    from itertools import islice

    notes = _slots["__dict__"].__get__(exc).get("__notes__", ())
    return islice(notes, _NOTES_MAX)


def _frames(tb: TracebackType | None, skip: str) -> list[str]:
    try:
        import traceback  # what fails pays for it, not every fork

        summary = [frame for frame in traceback.extract_tb(tb) if frame.filename != skip]
        if len(summary) > _FRAMES_MAX:
            half = _FRAMES_MAX // 2
            left_out = f"  ... {len(summary) - 2 * half} frames are left out ...\n"
            first, last = summary[:half], summary[-half:]
            return [*traceback.format_list(first), left_out, *traceback.format_list(last)]
        return traceback.format_list(summary)
    except BaseException:
        return ["  <frames that are unprintable>\n"]
