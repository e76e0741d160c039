"""Frames that no honest sandbox sends: one outcome each, in time, and an unharmed manager."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from support import sandbox_tasks as tasks
from support.sandboxes import MODES, Bench, count_fds, make_sandbox

from fumehood.common import Status
from fumehood.worker.sandbox import protocol


@pytest.fixture(scope="module", params=MODES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with Bench(make_sandbox(request.param)) as bench:
        yield bench


@pytest.fixture(autouse=True)
def unharmed(bench: Bench) -> Iterator[None]:
    assert bench.run(tasks.add.call(1, 1)).value == 2  # every seat has its descriptors by now
    fds = count_fds()
    yield
    assert bench.run(tasks.add.call(1, 1)).value == 2
    assert count_fds() <= fds + 12


def _frame(letter: bytes, *parts: Any) -> bytes:
    return letter + msgpack.packb(list(parts))


# A few thousand bytes that would have a careless decoder allocate gigabytes.
_DEEP = b"\xdd\x00\x00\xff\xf0" * 900 + bytes(0xFFF0)
_MALFORMED = {
    "no such letter": b"?",
    "binary": bytes(range(256)),
    "a second READY": b"R",
    "a job": b"J",
    "setup failed after READY": _frame(b"S", "cgroup", 1, "lie"),
    "an error that is none": b"E\xc1",
    "an error cut off": _frame(b"E", "a", "b", "c")[:-1],
    "an error of two": _frame(b"E", "a", "b"),
    "an error of four": _frame(b"E", "a", "b", "c", "d"),
    "an error of numbers": _frame(b"E", 1, 2, 3),
    "an error with a map of lists": b"E\x93\x81\x90\x01\xa1b\xa1c",
    "an error that is deep": b"E" + b"\x91" * 3000 + b"\xc0",
    "an error that is wide": (b"E" + _DEEP)[: protocol.INLINE_MAX],
    "a size that is text": _frame(b"L", "many"),
    "a size that is a flag": _frame(b"L", True),
    "a refusal of nothing": _frame(b"X"),
    "a refusal that is nested": _frame(b"X", [[[]]]),
    "a value without its memfd": b"M",
}


@pytest.mark.parametrize("frame", _MALFORMED.values(), ids=_MALFORMED.keys())
@pytest.mark.parametrize("stay", [False, True], ids=["returns", "stays"])
def test_malformed_frames(bench: Bench, frame: bytes, stay: bool) -> None:
    outcome = bench.run(tasks.send_raw.call([frame], stay))
    assert outcome.status is Status.PROTOCOL_ERROR, outcome
    assert outcome.usage.wall < 10


@pytest.mark.parametrize("size", [protocol.FRAME_MAX + 1, 150_000])
def test_oversized_frames(bench: Bench, size: int) -> None:
    outcome = bench.run(tasks.send_raw.call([b"V" + bytes(size)], True))
    assert outcome.status is Status.PROTOCOL_ERROR
    assert "larger than its bound" in outcome.reason


@pytest.mark.parametrize(
    "first", [b"V\xc0", _frame(b"E", "a", "b", "c"), _frame(b"L", 5), _frame(b"X", "no")]
)
def test_two_results(bench: Bench, first: bytes) -> None:
    assert bench.run(tasks.send_raw.call([first])).status is Status.PROTOCOL_ERROR
    assert bench.run(tasks.send_raw.call([first, b"V\xc0"], True)).status is Status.PROTOCOL_ERROR


def test_progress_after_a_result(bench: Bench) -> None:
    frames = [b"V\xc0", _frame(b"P", 0.5, "", None)]
    assert bench.run(tasks.send_raw.call(frames, True)).status is Status.PROTOCOL_ERROR


@pytest.mark.parametrize("kind", ["pipe", "unsealed", "zero", "file", "none", "many"])
def test_descriptors_that_are_no_sealed_memfd(bench: Bench, kind: str) -> None:
    outcome = bench.run(tasks.send_descriptor.call(kind))
    assert outcome.status is Status.PROTOCOL_ERROR, outcome


@pytest.mark.parametrize("letter", [b"V", b"P", b"R"])
def test_descriptors_that_nobody_asked_for(bench: Bench, letter: bytes) -> None:
    outcome = bench.run(tasks.send_descriptor.call("many", letter), timeout=2.0)
    assert outcome.status is Status.PROTOCOL_ERROR


def test_a_closed_channel(bench: Bench) -> None:
    outcome = bench.run(tasks.close_channel.call())
    assert outcome.status is Status.EXITED


def test_a_forged_value_is_the_tasks_own_affair(bench: Bench) -> None:
    outcome = bench.run(tasks.forge_and_exit.call(b"V\x2a", 0))
    assert (outcome.status, outcome.value) == (Status.SUCCEEDED, 42)


def test_a_forged_value_does_not_hide_how_it_ended(bench: Bench) -> None:
    outcome = bench.run(tasks.forge_and_exit.call(b"V\x2a", 3))
    assert (outcome.status, outcome.exit_code) == (Status.EXITED, 3)
    outcome = bench.run(tasks.forge_and_hang.call(b"V\x2a"), timeout=0.2)
    assert outcome.status is Status.TIMED_OUT


def test_a_forged_value_that_is_none(bench: Bench) -> None:
    from fumehood.common.errors import DecodeError

    outcome = bench.run(tasks.forge_and_exit.call(b"V\xc1", 0))
    assert outcome.ok
    with pytest.raises(DecodeError):
        _ = outcome.value


# --- progress -------------------------------------------------------------------------------


def test_reports_arrive_and_are_not_too_many(bench: Bench) -> None:
    heard: list[Any] = []
    outcome = bench.run(tasks.report.call(5000), on_progress=lambda *said: heard.append(said))
    assert outcome.value == "reported"
    assert heard[0] == (0.0, "step 0", {"at": 0})
    assert heard[-1] == (1.0, "done", None)
    assert len(heard) < 100


def test_a_flood_of_reports(bench: Bench) -> None:
    heard: list[Any] = []
    frame = _frame(b"P", 1.0, "x" * 5000, None)
    started = time.monotonic()
    outcome = bench.run(
        tasks.send_many.call(frame, 20_000), on_progress=lambda *said: heard.append(said)
    )
    assert outcome.value == "sent"
    assert all(len(message) == 1000 for _, message, _ in heard)
    assert len(heard) <= 21 + 41 * (time.monotonic() - started)


def test_malformed_reports(bench: Bench) -> None:
    for parts in ((1, "", None), (0.5, 1, None), (0.5, ""), ()):
        outcome = bench.run(
            tasks.send_raw.call([_frame(b"P", *parts)], True), on_progress=lambda *said: None
        )
        assert outcome.status is Status.PROTOCOL_ERROR


def test_a_listener_that_raises(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def listen(*said: Any) -> None:
        raise ValueError("mine")

    outcome = bench.run(tasks.report.call(2), on_progress=listen)
    assert outcome.value == "reported"
    assert "a progress listener raised" in caplog.text


def test_reports_that_nobody_listens_to(bench: Bench) -> None:
    assert bench.run(tasks.report.call(100)).value == "reported"
