"""A job as it travels: the frozen envelope, its AMQP mapping, and that of an outcome.

``docs/protocol.md`` is the specification; this file and ``codec.py`` are its implementation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

from fumehood.common.codec import decode, encode
from fumehood.common.errors import DecodeError, MalformedMessage, PayloadTooLarge
from fumehood.common.limits import Limits
from fumehood.common.message import CONTENT_TYPE, TYPE_CONTROL, TYPE_JOB, TYPE_OUTCOME, Message
from fumehood.common.outcome import Blame, ErrorInfo, Outcome, Status, Usage
from fumehood.common.task import Call

_TRACE_HEADERS = ("traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One job on its way. ``arguments`` stay encoded until a sandbox reads them.

    ``timeout`` is in seconds, None where the sender set none. ``expires`` is a UNIX time in
    milliseconds.
    """

    job_id: str
    task: str
    arguments: bytes
    timeout: float | None = None
    expires: int | None = None
    reply_to: str = ""
    attempt: int = 1
    limits: Limits = field(default_factory=Limits)
    trace: Mapping[str, str] = field(default_factory=dict)

    def to_message(self) -> Message:
        """The message that carries this job."""
        headers: dict[str, Any] = {"task": self.task, **self.trace}
        if self.timeout is not None:
            headers["timeout"] = self.timeout
        if self.expires is not None:
            headers["expires"] = self.expires
        if self.attempt != 1:
            headers["attempt"] = self.attempt
        headers.update({f"limit-{name}": size for name, size in self.limits.to_wire().items()})
        return Message(self.arguments, TYPE_JOB, self.job_id, self.reply_to, headers=headers)

    @classmethod
    def from_message(cls, message: Message) -> Envelope:
        """Read a job. Raises ``MalformedMessage``, which names the field and what it should be."""
        if message.type != TYPE_JOB:
            raise MalformedMessage(f"type is {message.type!r}, a job's is {TYPE_JOB!r}")
        if message.content_type != CONTENT_TYPE:
            raise MalformedMessage(f"content_type is {message.content_type!r}, it must be {CONTENT_TYPE!r}")
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
            attempt=_integer(headers, "attempt") or 1,
            limits=_limits(headers),
            trace={name: str(headers[name]) for name in _TRACE_HEADERS if name in headers},
        )


def encode_arguments(call: Call[Any], maximum: int) -> bytes:
    """A call's arguments as a body. Raises ``InvalidArguments``, ``PayloadTooLarge``."""
    args = encode(call.args, "args")
    kwargs = encode(call.kwargs, "kwargs")
    # An array of the two, joined from parts that were encoded apart for the sake of their paths.
    body = b"\x92" + encode_list(args) + kwargs
    if len(body) > maximum:
        raise PayloadTooLarge(
            f"the arguments of {call.task.name} take {len(body)} bytes, max_arguments is {maximum}: "
            "store the data and pass a reference to it"
        )
    return body


def encode_list(tuple_bytes: bytes) -> bytes:
    """The plain array inside an encoded tuple."""
    ext = msgpack.unpackb(tuple_bytes)
    return bytes(ext.data)


def decode_arguments(body: bytes | memoryview) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments of a body. Raises ``DecodeError``."""
    parts = decode(body)
    if not isinstance(parts, list) or len(parts) != 2:
        raise DecodeError("a job's body is an array of two: positional arguments and named arguments")
    args, kwargs = parts
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise DecodeError("a job's body holds an array and a map, in this order")
    if not all(isinstance(name, str) for name in kwargs):
        raise DecodeError("names of arguments must be text")
    return args, kwargs


# --- headers -------------------------------------------------------------------------------


def _text(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedMessage(f"header {name!r} must be text, not {value!r}")
    return value


def _seconds(headers: Mapping[str, Any], name: str) -> float | None:
    value = headers.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise MalformedMessage(f"header {name!r} must be a finite number of seconds above 0, not {value!r}")
    return float(value)


def _integer(headers: Mapping[str, Any], name: str) -> int | None:
    value = headers.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MalformedMessage(f"header {name!r} must be a whole number, 0 or more, not {value!r}")
    return value


def _limits(headers: Mapping[str, Any]) -> Limits:
    found = {name[6:]: _integer(headers, name) for name in headers if name.startswith("limit-")}
    if not found:
        return Limits()
    try:
        return Limits.from_wire(found)
    except Exception as cause:
        raise MalformedMessage(str(cause)) from None


# --- outcomes ------------------------------------------------------------------------------


def outcome_to_message(outcome: Outcome, reply_to: str = "") -> Message:
    """The message that carries an outcome to its producer."""
    body: dict[str, Any] = {
        "status": outcome.status.value,
        "blame": outcome.blame.value,
        "task": outcome.task,
        "reason": outcome.reason,
        "attempt": outcome.attempt,
        "node": outcome.node,
        "finished_at": outcome.finished_at,
        "usage": [outcome.usage.wall, outcome.usage.cpu, outcome.usage.setup],
    }
    if outcome.error is not None:
        body["error"] = [outcome.error.type, outcome.error.message, outcome.error.traceback]
    if outcome.value_bytes is not None:
        body["value"] = outcome.value_bytes
    # Most jobs have none of these: what is empty is not sent.
    body.update({name: found for name in _OPTIONAL if (found := getattr(outcome, name)) not in (None, "", b"", 0)})
    if outcome.exit_code is not None:
        body["exit_code"] = outcome.exit_code
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    headers = {"status": outcome.status.value}
    return Message(packed, TYPE_OUTCOME, outcome.job_id, reply_to, headers=headers)


_OPTIONAL = ("stack", "signal", "limit", "stage", "stdout", "stderr", "output_dropped", "leaked_processes")


def outcome_from_message(message: Message) -> Outcome:
    """Read an outcome. Raises ``MalformedMessage``."""
    try:
        body = msgpack.unpackb(message.body, raw=False)
        error = body.get("error")
        return Outcome(
            status=Status(body["status"]),
            job_id=message.correlation_id,
            task=body.get("task", ""),
            blame=Blame(body.get("blame", Blame.NOBODY.value)),
            reason=body.get("reason", ""),
            value_bytes=body.get("value"),
            error=ErrorInfo(*error) if error else None,
            exit_code=body.get("exit_code"),
            usage=Usage(*body.get("usage", ())),
            attempt=body.get("attempt", 1),
            node=body.get("node", ""),
            finished_at=body.get("finished_at", 0.0),
            **{name: body[name] for name in _OPTIONAL if name in body},
        )
    except Exception as cause:  # anybody may write to a reply address: any fault is the same fault
        raise MalformedMessage(f"not an outcome: {cause!r}") from None


# --- control -------------------------------------------------------------------------------


def cancel_message(job_id: str) -> Message:
    """Tell every node that a job is not wanted any more."""
    packed: bytes = msgpack.packb({"do": "cancel"})
    return Message(packed, TYPE_CONTROL, job_id)


def read_control(message: Message) -> tuple[str, str]:
    """What to do, and to which job. Raises ``MalformedMessage``."""
    try:
        return str(msgpack.unpackb(message.body, raw=False)["do"]), message.correlation_id
    except Exception as cause:
        raise MalformedMessage(f"not a control message: {cause!r}") from None
