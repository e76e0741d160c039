"""An exception as bounded text, whatever its class does when it is asked to describe itself."""

from __future__ import annotations

import traceback
from types import TracebackType

MESSAGE_MAX = 8 << 10  # characters
TRACEBACK_MAX = 24 << 10  # characters; with the message it fits one inline frame as UTF-8
_FRAMES_MAX = 60
_CHAIN_MAX = 6


def describe(exc: BaseException, skip: str) -> tuple[str, str, str]:
    """Type name, message and traceback of ``exc``; frames of the file ``skip`` are left out."""
    return type_name(exc), _clip(message_of(exc), MESSAGE_MAX), _clip(_chain(exc, skip), TRACEBACK_MAX)


def type_name(exc: BaseException) -> str:
    """The class as ``module.qualname``; without the module for built-in ones."""
    kind = type(exc)
    name = type.__dict__["__qualname__"].__get__(kind)
    module = kind.__dict__.get("__module__", "")
    if not isinstance(module, str) or module in ("builtins", "__main__", ""):
        return str(name)
    return f"{module}.{name}"


def message_of(exc: BaseException) -> str:
    """``str(exc)``, or a note in its place when that raises or gives no text."""
    try:
        text = str(exc)
        return text if type(text) is str else str.__str__(text)
    except BaseException:  # the task's own class may raise anything, SystemExit included
        return "<unprintable>"


def _chain(exc: BaseException, skip: str) -> str:
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = exc
    while current is not None and id(current) not in seen and len(parts) < _CHAIN_MAX:
        seen.add(id(current))
        parts.append(_one(current, skip))
        cause = current.__cause__
        current = cause or (None if current.__suppress_context__ else current.__context__)
    if current is not None:
        parts.append("(more causes are left out)\n")
    return "\nThe above exception is the cause of, or was being handled at, this one:\n\n".join(reversed(parts))


def _one(exc: BaseException, skip: str) -> str:
    frames = _frames(exc.__traceback__, skip)
    lines = ["Traceback (most recent call last):\n", *frames] if frames else []
    lines.append(f"{type_name(exc)}: {_clip(message_of(exc), MESSAGE_MAX)}\n")
    try:
        notes = getattr(exc, "__notes__", ())
        lines += [f"{_clip(str(note), 1000)}\n" for note in list(notes)[:10]]
        group = exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()
        for part in group[:10]:
            lines.append("  contains " + _one(part, skip).replace("\n", "\n  ").rstrip() + "\n")
    except BaseException:  # a note or a member that cannot be described is left out
        lines.append("<more that is unprintable>\n")
    return "".join(lines)


def _frames(tb: TracebackType | None, skip: str) -> list[str]:
    try:
        summary = [frame for frame in traceback.extract_tb(tb) if frame.filename != skip]
        if len(summary) > _FRAMES_MAX:
            half = _FRAMES_MAX // 2
            left_out = f"  ... {len(summary) - 2 * half} frames are left out ...\n"
            return [*traceback.format_list(summary[:half]), left_out, *traceback.format_list(summary[-half:])]
        return traceback.format_list(summary)
    except BaseException:
        return ["  <frames that are unprintable>\n"]


def _clip(text: str, size: int) -> str:
    clean = text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
    if len(clean) <= size:
        return clean
    half = size // 2
    return f"{clean[:half]}\n... {len(clean) - 2 * half} characters are left out ...\n{clean[-half:]}"
