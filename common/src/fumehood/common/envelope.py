"""A job as it travels: the frozen envelope, its AMQP mapping, and that of an outcome.

``docs/protocol.md`` is the specification; this file and ``codec.py`` are its implementation.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import msgpack

from fumehood.common.codec import decode
from fumehood.common.errors import (
    ConfigurationError,
    InvalidArguments,
    MalformedMessage,
)
from fumehood.common.limits import Limits
from fumehood.common.message import CONTENT_TYPE, TYPE_CONTROL, TYPE_JOB, TYPE_OUTCOME, Message
from fumehood.common.outcome import Blame, ErrorInfo, Outcome, Status, Usage
from fumehood.common.task import check_timeout

_TRACE_HEADERS = ("traceparent", "tracestate")
_LIMIT = "limit-"

Member = TypeVar("Member", Status, Blame)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One job on its way. ``arguments`` stay encoded until a sandbox reads them.

    ``timeout`` is in seconds, None where the sender set none. ``expires`` is a UNIX time in
    milliseconds. ``trace`` holds ``traceparent`` and ``tracestate``; other names do not travel.
    """

    job_id: str
    task: str
    arguments: bytes
    timeout: float | None = None
    expires: int | None = None
    reply_to: str = ""
    attempt: int = 1
    limits: Limits = field(default_factory=Limits)
    trace: Mapping[str, str] = field(default_factory=dict[str, str])

    def to_message(self) -> Message:
        """The message that carries this job."""
        headers: dict[str, Any] = {"task": self.task}
        if self.timeout is not None:
            headers["timeout"] = self.timeout
        if self.expires is not None:
            headers["expires"] = self.expires
        if self.attempt != 1:
            headers["attempt"] = self.attempt
        for name, size in self.limits.to_wire().items():
            headers[_LIMIT + name] = size
        for name in _TRACE_HEADERS:
            if name in self.trace:
                headers[name] = self.trace[name]
        return Message(self.arguments, TYPE_JOB, self.job_id, self.reply_to, headers=headers)

    @classmethod
    def from_message(cls, message: Message) -> Envelope:
        """Read a job. Raises ``MalformedMessage``, which names the field and what it should be."""
        if message.type != TYPE_JOB:
            raise MalformedMessage(f"type is {message.type!r}, a job's is {TYPE_JOB!r}")
        if message.content_type != CONTENT_TYPE:
            raise MalformedMessage(
                f"content_type is {message.content_type!r}, it must be {CONTENT_TYPE!r}"
            )
        if not message.correlation_id:
            raise MalformedMessage("correlation_id is missing: it is the job's id")
        headers = message.headers
        return cls(
            job_id=message.correlation_id,
            task=_text(headers, "task"),
            arguments=message.body,
            timeout=_seconds(headers, "timeout"),
            expires=_integer(headers, "expires"),
            reply_to=message.reply_to,
            attempt=_integer(headers, "attempt", 1) or 1,
            limits=_limits(headers),
            # A trace that cannot be read is no reason to refuse a job.
            trace={n: headers[n] for n in _TRACE_HEADERS if isinstance(headers.get(n), str)},
        )


# --- headers -------------------------------------------------------------------------------


def _text(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedMessage(f"header {name!r} must be text, not {value!r}")
    return value


def _seconds(headers: Mapping[str, Any], name: str) -> float | None:
    value = _plain(headers.get(name))
    if value is None:
        return None
    try:
        return check_timeout(value)
    except InvalidArguments as cause:
        raise MalformedMessage(f"header {name!r}: {cause}") from None


def _plain(value: Any) -> Any:
    decimal = sys.modules.get("decimal")
    if decimal is not None and isinstance(value, decimal.Decimal):
        return float(value)  # some AMQP libraries write no floats, but these
    return value


def _number(headers: Mapping[str, Any], name: str) -> Any:
    value = _plain(headers[name])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MalformedMessage(f"header {name!r} must be a number, not {value!r}")
    return value


def _integer(headers: Mapping[str, Any], name: str, least: int = 0) -> int | None:
    value = headers.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MalformedMessage(
            f"header {name!r} must be a whole number, {least} or more, not {value!r}"
        )
    return value


def _limits(headers: Mapping[str, Any]) -> Limits:
    names = [name for name in headers if name.startswith(_LIMIT)]
    if not names:
        return Limits()
    try:
        return Limits.from_wire({n.removeprefix(_LIMIT): _number(headers, n) for n in names})
    except ConfigurationError as cause:
        raise MalformedMessage(f"headers {', '.join(map(repr, names))}: {cause}") from None


# --- outcomes ------------------------------------------------------------------------------

# What an outcome holds as it is, besides its status, blame, error and usage; and of which type.
_FACTS: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "reason": (str,),
    "stack": (str,),
    "exit_code": (int,),
    "signal": (str,),
    "limit": (str,),
    "limit_value": (float, int),
    "peak": (float, int),
    "profile": (str,),
    "stage": (str,),
    "stdout": (bytes,),
    "stderr": (bytes,),
    "output_dropped": (int,),
    "leaked_processes": (int,),
    "attempt": (int,),
    "node": (str,),
    "finished_at": (float, int),
}


def outcome_to_message(outcome: Outcome, reply_to: str = "") -> Message:
    """The message that carries an outcome to its producer. What is empty is not sent."""
    usage = outcome.usage
    body: dict[str, Any] = {
        "status": outcome.status.value,
        "blame": outcome.blame.value,
        "usage": [usage.wall, usage.cpu, usage.setup, usage.memory],
    }
    for name in _FACTS:
        if fact := getattr(outcome, name):
            body[name] = fact
    if outcome.exit_code is not None:
        body["exit_code"] = outcome.exit_code  # 0 says something, too
    if outcome.guarantees:
        body["guarantees"] = list(outcome.guarantees)
    if outcome.error is not None:
        body["error"] = [outcome.error.type, outcome.error.message, outcome.error.traceback]
    if outcome.value_bytes is not None:
        body["value"] = outcome.value_bytes
    packed = msgpack.packb(body, use_bin_type=True, unicode_errors="backslashreplace")
    headers = {"status": outcome.status.value}
    return Message(packed, TYPE_OUTCOME, outcome.job_id, reply_to, headers=headers)


def outcome_from_message(message: Message) -> Outcome:
    """Read an outcome. Raises ``MalformedMessage``, which names the field.

    Anybody may write to a reply address, so that every field is checked.
    """
    if message.type != TYPE_OUTCOME:
        raise MalformedMessage(f"type is {message.type!r}, an outcome's is {TYPE_OUTCOME!r}")
    if not message.correlation_id:
        raise MalformedMessage("correlation_id is missing: it is the job's id")
    body = _body(message)
    facts = {name: _fact(kinds, name, body) for name, kinds in _FACTS.items() if name in body}
    if "value" in body:
        facts["value_bytes"] = _fact((bytes,), "value", body)
    if "error" in body:
        facts["error"] = ErrorInfo(*_list_of((str,), "error", body["error"], 2, 3))
    if "usage" in body:
        facts["usage"] = Usage(*_list_of((float, int), "usage", body["usage"], 0, 4))
    if "guarantees" in body:
        facts["guarantees"] = tuple(_list_of((str,), "guarantees", body["guarantees"], 0, 100))
    return Outcome(
        status=_member(Status, "status", body.get("status")),
        job_id=message.correlation_id,
        blame=_member(Blame, "blame", body.get("blame", "nobody")),
        **facts,
    )


def _body(message: Message) -> dict[str, Any]:
    body = decode(message.body)
    if not isinstance(body, dict):
        raise MalformedMessage("the body must be a map")
    return cast("dict[str, Any]", body)


def _member(kind: type[Member], name: str, value: Any) -> Member:
    try:
        return kind(value)
    except (ValueError, TypeError):
        raise MalformedMessage(
            f"{name} must be one of {[str(member) for member in kind]}, not {value!r:.80}"
        ) from None


def _fact(kinds: tuple[type, ...], name: str, body: Mapping[str, Any]) -> Any:
    if type(body[name]) not in kinds:
        raise MalformedMessage(f"{name} must be {kinds[0].__name__}, not {body[name]!r:.80}")
    return body[name]


def _list_of(kinds: tuple[type, ...], name: str, value: Any, least: int, most: int) -> list[Any]:
    parts: list[Any] = value
    if (
        type(value) is not list
        or not least <= len(parts) <= most
        or not all(type(part) in kinds for part in parts)
    ):
        wanted = f"an array of {least} to {most} {kinds[0].__name__}"
        raise MalformedMessage(f"{name} must be {wanted}, not {value!r:.80}")
    return parts


# --- control -------------------------------------------------------------------------------


def cancel_message(job_id: str) -> Message:
    """Tell every node that a job is not wanted any more."""
    return Message(msgpack.packb({"do": "cancel"}), TYPE_CONTROL, job_id)


def read_control(message: Message) -> tuple[str, str]:
    """What to do, and to which job. Raises ``MalformedMessage``."""
    what = _body(message).get("do")
    if not isinstance(what, str) or not message.correlation_id:
        raise MalformedMessage("a control message names what to do, and the job as correlation_id")
    return what, message.correlation_id
