"""What becomes of sandboxes that end at some byte of their own protocol.

For each kind of frame, each of its prefixes, and each way to end: one outcome, never a value that
was not sent whole, and nobody waits for the rest.
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from fumehood.common import Blame, Status
from fumehood.worker.sandbox import protocol
from hostile.case import PROTOCOL, AnyOf, Case, Expect, crashed, exited, timed_out, value
from hostile.tasks import wire


def _frame(letter: bytes, *parts: Any) -> bytes:
    return letter + msgpack.packb(list(parts))


FRAMES = {
    "value": protocol.VALUE + msgpack.packb("forged"),
    "value-fd": protocol.VALUE_FD,
    "error": _frame(protocol.ERROR, "E", "m", "t"),
    "too-large": _frame(protocol.TOO_LARGE, 99),
    "refused": _frame(protocol.REFUSED, "no"),
    "progress": _frame(protocol.PROGRESS, 0.5, "x", None),
    "ready": protocol.READY + struct.pack("d", 1.0),
    "setup": _frame(protocol.SETUP_FAILED, "cgroup", 1, "x"),
    "arguments": protocol.ARGUMENTS,
}
ENDS = ("killed", "exits", "crashes", "returns", "hangs")

# How each end shows when what was said before it is no breach of the protocol.
_HONEST: dict[str, Expect] = {
    "killed": Expect(Status.CRASHED, blame=Blame.INFRA, signal="SIGKILL"),
    "exits": exited(0),
    "crashes": crashed("SIGABRT"),
    "returns": value("returned"),
    "hangs": timed_out(),
}
# A frame of no bytes reads as the end of the channel, so that no result of a task's arrives.
_UNHEARD = {"returns": AnyOf((exited(0), PROTOCOL, value("returned"), exited(70)))}


def _expectation(kind: str, frame: bytes, end: str) -> Expect | AnyOf:
    honest = _HONEST[end]
    if not frame:
        return _UNHEARD.get(end, honest)
    if kind == "progress" and frame == FRAMES[kind]:
        return honest
    if frame != FRAMES[kind] and end in ("killed", "crashes"):
        return AnyOf((honest, PROTOCOL))
    whole = _whole(kind, frame, end)
    return AnyOf((PROTOCOL, whole, honest) if end != "returns" else (PROTOCOL, whole))


def _whole(kind: str, frame: bytes, end: str) -> Expect:
    """What a frame gives that is all there, and the process ends as if it were honest."""
    if kind == "value" and end == "exits":
        # A frame has no more length than its packet: what is cut is a value that nobody can read.
        return Expect(
            Status.SUCCEEDED, where={"its own forgery": lambda o: o.value_bytes == frame[1:]}
        )
    if frame == FRAMES[kind] and end == "exits":
        if kind == "error":
            return Expect(Status.FAILED)
        if kind == "too-large":
            return Expect(Status.LIMIT_EXCEEDED, limit="result")
        if kind == "refused":
            return Expect(Status.REJECTED)
    return PROTOCOL


def _prefixes() -> list[Case]:
    found: list[Case] = []
    for kind, frame in FRAMES.items():
        for cut in range(len(frame) + 1):
            for end in ENDS:
                part = frame[:cut]
                found.append(
                    Case(
                        id=f"{kind}-{cut}-{end}",
                        call=wire.break_off.call(part, end),
                        timeout=0.15 if end == "hangs" else 10.0,
                        trusted=_expectation(kind, part, end),
                    )
                )
    return found


#: By the hundred, and so side by side: ``test_wire_bytes`` runs them.
PREFIXES = _prefixes()

CASES = [
    *(Case(id=f"shutdown-{way}", call=wire.shut_down.call(way),
           trusted=AnyOf((value("returned"), exited(0), exited(70), PROTOCOL,
                          Expect(Status.CRASHED, signal="SIGPIPE"))))
      for way in (0, 1, 2)),
    Case(id="closed-and-hangs", call=wire.break_off.call(b"P", "closes"), timeout=0.3,
         trusted=AnyOf((PROTOCOL, timed_out()))),
    Case(id="socket-full", call=wire.fill_the_socket.call(), trusted=value("returned")),
    Case(id="socket-read", call=wire.read_the_socket.call(), trusted=value("nothing to read")),
    *(Case(id=f"between-{first}-{second}-{end}", timeout=0.3 if end == "hangs" else 10.0,
           call=wire.break_off_between.call([FRAMES[first], FRAMES[second]], end),
           trusted=AnyOf((PROTOCOL, _HONEST[end])))
      for first, second in (("value", "value"), ("value", "progress"), ("error", "value"))
      for end in ("killed", "exits", "hangs")),
    Case(id="ten-thousand-frames", call=wire.break_off_between.call([b"?\x90"] * 10_000, "exits"),
         trusted=PROTOCOL),
]  # fmt: skip
