"""Jobs, outcomes and control messages through their messages and back."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.common import InvalidArguments, Limits, PayloadTooLarge, task
from fumehood.common.arguments import decode_arguments, encode_arguments
from fumehood.common.envelope import (
    Envelope,
    cancel_message,
    outcome_from_message,
    outcome_to_message,
    read_control,
)
from fumehood.common.errors import DecodeError, MalformedMessage
from fumehood.common.message import Message
from fumehood.common.outcome import Blame, ErrorInfo, Outcome, Status, Usage

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SECONDS = st.floats(0, 1e9)
SIZES = st.none() | st.integers(0, 2**63 - 1)
ENVELOPES = st.builds(
    Envelope,
    job_id=TEXT.filter(bool),
    task=TEXT.filter(bool),
    arguments=st.binary(max_size=20),
    timeout=st.none() | SECONDS.filter(bool),
    expires=st.none() | st.integers(0, 2**53),
    reply_to=TEXT,
    attempt=st.integers(1, 1000),
    limits=st.builds(Limits, output=SIZES, result=SIZES),
    trace=st.dictionaries(st.sampled_from(["traceparent", "tracestate"]), TEXT),
)
OUTCOMES = st.builds(
    Outcome,
    status=st.sampled_from(Status),
    job_id=TEXT.filter(bool),
    task=TEXT,
    blame=st.sampled_from(Blame),
    reason=TEXT,
    value_bytes=st.none() | st.binary(max_size=20),
    error=st.none() | st.builds(ErrorInfo, TEXT, TEXT, TEXT),
    stack=TEXT,
    exit_code=st.none() | st.integers(-255, 255),
    signal=st.none() | st.just("SIGSEGV"),
    limit=st.none() | st.just("memory"),
    stage=st.none() | st.just("rlimits"),
    stdout=st.binary(max_size=20),
    stderr=st.binary(max_size=20),
    output_dropped=st.integers(0, 2**40),
    leaked_processes=st.integers(0, 1000),
    usage=st.builds(Usage, SECONDS, SECONDS, SECONDS),
    attempt=st.integers(1, 1000),
    node=TEXT,
    finished_at=SECONDS,
)


@given(ENVELOPES)
def test_a_job_comes_back_from_its_message(envelope: Envelope) -> None:
    message = envelope.to_message()
    assert Envelope.from_message(message) == envelope
    assert message.type == "job"
    assert all(type(value) in (str, int, float) for value in message.headers.values())


@given(OUTCOMES)
def test_an_outcome_comes_back_from_its_message(outcome: Outcome) -> None:
    message = outcome_to_message(outcome, "to.me")
    assert outcome_from_message(message) == outcome
    assert (message.type, message.reply_to) == ("outcome", "to.me")
    assert message.headers == {"status": outcome.status.value}


def wrongly(field: str, *values: Any) -> list[tuple[dict[str, Any], str]]:
    """Cases of a field with wrong values, and how the field is named."""
    return [({field: value}, field) for value in values]


JOB = Envelope("id", "app.add", b"\x92\x90\x80", 5.0).to_message()


def test_a_trace_cannot_stand_in_for_another_header() -> None:
    envelope = Envelope("id", "app.add", b"", trace={"task": "app.other", "traceparent": "00"})
    headers = envelope.to_message().headers
    assert headers == {"task": "app.add", "traceparent": "00"}
    unreadable = dataclasses.replace(JOB, headers={"task": "app.add", "traceparent": b"\xff"})
    assert Envelope.from_message(unreadable).trace == {}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *(({"type": "outcome"}, "type"), ({"content_type": "application/json"}, "content_type")),
        ({"correlation_id": ""}, "correlation_id"),
        *(({"task": None}, "'task'"), ({"task": ""}, "'task'"), ({"task": b"add"}, "'task'")),
        *wrongly("timeout", 0, -1, True, "5", math.nan, math.inf),
        *wrongly("timeout", 10**400, b"5", []),
        *wrongly("expires", -1, 1.5, True, "5"),
        *wrongly("attempt", 0, -1, 1.0, True, "1"),
        *wrongly("limit-output", -1, "8MiB", True, 2**63),
        ({"limit-colour": 5}, "limit-colour"),
    ],
)
def test_a_malformed_job_names_the_field(changes: dict[str, Any], named: str) -> None:
    properties = {name: value for name, value in changes.items() if hasattr(JOB, name)}
    headers = {"task": "app.add"} | {n: v for n, v in changes.items() if n not in properties}
    with pytest.raises(MalformedMessage, match=named):
        Envelope.from_message(dataclasses.replace(JOB, headers=headers, **properties))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *wrongly("status", None, "odd", 5, [], {}),
        *wrongly("blame", "odd", None, {}),
        *(({name: 5.5}, name) for name in ("task", "reason", "stack", "signal", "limit", "node")),
        *(({name: "text"}, name) for name in ("stdout", "stderr", "value", "exit_code")),
        *(({name: True}, name) for name in ("attempt", "output_dropped", "leaked_processes")),
        *wrongly("error", "text", [], ["a", 5], ["a"] * 4, {}),
        *wrongly("usage", "text", [1, 2, 3, 4, 5], ["1"], {}, 5),
        ({"finished_at": "today"}, "finished_at"),
    ],
)
def test_a_malformed_outcome_names_the_field(changes: dict[str, Any], named: str) -> None:
    body = msgpack.packb({"status": "succeeded"} | changes)
    with pytest.raises(MalformedMessage, match=f"^{named} must"):
        outcome_from_message(Message(body, "outcome", "id"))


@pytest.mark.parametrize(
    "message",
    [
        Message(b"\xc1", "outcome", "id"),
        Message(b"\x90", "outcome", "id"),
        Message(b"", "outcome", "id"),
        Message(msgpack.packb({"status": "succeeded"}), "job", "id"),
        Message(msgpack.packb({"status": "succeeded"}), "outcome"),
    ],
)
def test_what_is_no_outcome_is_refused(message: Message) -> None:
    with pytest.raises(MalformedMessage):
        outcome_from_message(message)


def test_a_lean_outcome_of_another_program_is_read() -> None:
    body = msgpack.packb({"status": "failed", "usage": [1, 2], "error": ["E", "m"], "new": 1})
    outcome = outcome_from_message(Message(body, "outcome", "id"))
    assert outcome == Outcome(Status.FAILED, "id", usage=Usage(1, 2), error=ErrorInfo("E", "m"))


def test_text_that_is_not_unicode_does_not_lose_an_outcome() -> None:
    outcome = Outcome(Status.FAILED, "id", reason="file \udcff.txt")
    assert outcome_from_message(outcome_to_message(outcome)).reason == "file \\udcff.txt"


# --- arguments -----------------------------------------------------------------------------


@task
def store(*items: Any, **named: Any) -> None: ...


@given(st.lists(st.integers() | TEXT), st.dictionaries(TEXT, st.integers()))
def test_arguments_come_back(args: list[Any], kwargs: dict[str, int]) -> None:
    body = encode_arguments(store.call(*args, **kwargs), 1 << 20)
    assert decode_arguments(body) == (args, kwargs)
    assert decode_arguments(memoryview(body)) == (args, kwargs)


def test_the_arguments_of_any_msgpack_library_are_read() -> None:
    assert decode_arguments(msgpack.packb([[2, 3], {"c": 4}])) == ([2, 3], {"c": 4})
    assert encode_arguments(store.call(2, c=4), 100) == msgpack.packb([[2], {"c": 4}])


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (store.call(1, [object()]), "args[1][0]"),
        (store.call(1, where={"a": object()}), "kwargs['where']['a']"),
    ],
)
def test_a_bad_argument_is_named(call: Any, path: str) -> None:
    with pytest.raises(InvalidArguments) as caught:
        encode_arguments(call, 1 << 20)
    assert caught.value.path == path


def test_too_large_arguments_are_refused_to_the_byte() -> None:
    size = len(encode_arguments(store.call("x" * 100), 1000))
    assert len(encode_arguments(store.call("x" * 100), size)) == size
    with pytest.raises(PayloadTooLarge, match=f"{size} bytes, max_arguments is {size - 1}"):
        encode_arguments(store.call("x" * 100), size - 1)


@pytest.mark.parametrize(
    "body", [[], {}, [[]], [[], []], [{}, {}], [[], {}, 1], [[], {1: 2}], [[], {b"a": 2}], None]
)
def test_a_body_of_another_shape_is_refused(body: Any) -> None:
    with pytest.raises(DecodeError):
        decode_arguments(msgpack.packb(body))


# --- control -------------------------------------------------------------------------------


def test_a_cancel_names_its_job() -> None:
    assert read_control(cancel_message("id")) == ("cancel", "id")


@pytest.mark.parametrize("body", [b"", b"\x90", msgpack.packb({}), msgpack.packb({"do": 5})])
def test_what_is_no_control_message_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_control(Message(body, "control", "id"))


def test_a_timeout_may_be_a_decimal_for_libraries_that_write_no_floats() -> None:
    def timeout(value: object) -> float | None:
        headers = {"task": "app.add", "timeout": value}
        return Envelope.from_message(Message(b"", "job", "a", headers=headers)).timeout

    assert timeout(Decimal("2.5")) == 2.5
    for bad in (Decimal("NaN"), Decimal(-1), Decimal("Infinity")):
        with pytest.raises(MalformedMessage, match="timeout"):
            timeout(bad)
