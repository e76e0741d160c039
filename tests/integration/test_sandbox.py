"""What becomes of tasks that behave, or fail in the ways that programs do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from support import sandbox_tasks as tasks
from support.sandboxes import WAYS, Bench, make_sandbox

from fumehood.common import Blame, Limits, PayloadTooLarge, Status

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(scope="module", params=WAYS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    disable, ctx = request.param
    with Bench(make_sandbox(disable, slots=2, sandbox_ctx=ctx)) as bench:
        yield bench


@pytest.fixture(scope="module")
def way(bench: Bench) -> str:
    return bench.sandbox.manager._config.ctx


def test_calls(bench: Bench) -> None:
    assert bench.run(tasks.add.call(2, 3)).value == 5
    assert bench.run(tasks.add.call(2, b=3)).value == 5
    assert bench.run(tasks.add.call(a=2)).value == 12
    assert bench.run(tasks.add_async.call(2, b=3)).value == 5
    outcome = bench.run(tasks.nothing.call())
    assert outcome.ok
    assert outcome.value is None
    assert outcome.exit_code == 0
    assert outcome.blame is Blame.NOBODY


def test_arguments_are_rebuilt(bench: Bench) -> None:
    person = tasks.Person(name="Ada", age=36)
    call = tasks.rebuilt.call(tasks.Colour.BLUE, tasks.Point(7), person)
    assert bench.run(call).value == ["Colour", "Point", "Person", 7, 36]


SIZES = [0, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB, 8 * MIB]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_that_fit(bench: Bench, size: int) -> None:
    assert bench.run(tasks.give.call(size)).value == bytes(size)
    assert bench.run(tasks.take.call(bytes(size))).value == size


def test_a_result_above_its_limit(bench: Bench) -> None:
    outcome = bench.run(tasks.give.call(8 * MIB + 2 * KIB))
    assert outcome.status is Status.LIMIT_EXCEEDED
    assert (outcome.limit, outcome.blame) == ("result", Blame.LIMIT)
    assert "the result limit is" in outcome.reason
    outcome = bench.run(tasks.give.call(100), limits=Limits(result=50))
    assert outcome.status is Status.LIMIT_EXCEEDED
    assert "takes 102 bytes, the result limit is 50" in outcome.reason


def test_arguments_above_their_limit(bench: Bench) -> None:
    with pytest.raises(PayloadTooLarge, match="max_arguments"):
        bench.run(tasks.take.call(bytes(8 * MIB + 2 * KIB)))


# --- exceptions -----------------------------------------------------------------------------


def test_a_task_that_raises(bench: Bench) -> None:
    outcome = bench.run(tasks.raise_deep.call(3))
    assert (outcome.status, outcome.blame) == (Status.FAILED, Blame.TASK)
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == ("ValueError", "deep down")
    assert outcome.error.traceback.count("in _deeper") == 4
    assert "sandbox_tasks.py" in outcome.error.traceback
    assert f"{os.sep}worker{os.sep}sandbox{os.sep}" not in outcome.error.traceback


def test_a_decode_error_of_the_tasks_own_is_no_refusal(bench: Bench) -> None:
    outcome = bench.run(tasks.raise_decode_error.call())
    assert outcome.status is Status.FAILED
    assert outcome.error is not None
    assert outcome.error.type.endswith("DecodeError")


def test_a_coroutine_that_raises(bench: Bench) -> None:
    outcome = bench.run(tasks.raise_async.call())
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == (
        "LookupError",
        "'from a coroutine'"[1:-1],
    )
    assert f"{os.sep}worker{os.sep}sandbox{os.sep}" not in outcome.error.traceback


@pytest.mark.parametrize(
    "name", ["KeyboardInterrupt", "GeneratorExit", "BaseException", "StopIteration", "MemoryError"]
)
def test_exceptions_that_are_not_meant_to_be_caught(bench: Bench, name: str) -> None:
    outcome = bench.run(tasks.raise_it.call(name))
    assert outcome.status is Status.FAILED
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == (name, "on purpose")


def test_recursion(bench: Bench) -> None:
    outcome = bench.run(tasks.recurse.call())
    assert outcome.error is not None
    assert outcome.error.type == "RecursionError"
    assert len(outcome.error.traceback) < 64 * KIB


def test_exceptions_that_will_not_describe_themselves(bench: Bench) -> None:
    outcome = bench.run(tasks.raise_unspeakable.call())
    assert outcome.status is Status.FAILED
    assert outcome.error is not None
    assert outcome.error.type.endswith("Unspeakable")
    assert outcome.error.message == "<unprintable>"
    outcome = bench.run(tasks.raise_hidden.call())
    assert outcome.status is Status.FAILED, outcome
    assert outcome.error is not None
    assert outcome.error.type.endswith("Liar\\ud800")
    outcome = bench.run(tasks.raise_slow.call(), timeout=0.3)
    assert outcome.status is Status.TIMED_OUT
    assert "__str__" in outcome.stack


@pytest.mark.parametrize(
    "what", ["object", "circle", "deep", "coroutine", "generator", "asyncgen", "lock"]
)
def test_values_that_cannot_be_carried(bench: Bench, what: str) -> None:
    outcome = bench.run(tasks.give_back.call(what))
    assert outcome.status is Status.FAILED, outcome
    assert outcome.error is not None
    assert "the task's value cannot be carried" in outcome.error.message


# --- exits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [(0, 0, b""), (7, 7, b""), (-1, 255, b""), (None, 0, b""), ("why not", 1, b"why not\n")],
)
def test_system_exit(bench: Bench, code: Any, exit_code: int, stderr: bytes) -> None:
    outcome = bench.run(tasks.leave.call(code))
    assert (outcome.status, outcome.exit_code) == (Status.EXITED, exit_code)
    assert outcome.blame is Blame.TASK
    assert outcome.stderr == stderr


@pytest.mark.parametrize("code", [0, 7])
def test_an_exit_without_a_word(bench: Bench, code: int) -> None:
    outcome = bench.run(tasks.exit_now.call(code))
    assert (outcome.status, outcome.exit_code) == (Status.EXITED, code)
    assert not outcome.ok


@pytest.mark.parametrize("name", ["SIGABRT", "SIGFPE", "SIGBUS", "SIGILL", "SIGSEGV"])
def test_crashes(bench: Bench, name: str) -> None:
    outcome = bench.run(tasks.crash.call(name))
    assert (outcome.status, outcome.signal) == (Status.CRASHED, name)
    assert outcome.blame is Blame.TASK
    assert "in crash" in outcome.stack
    assert "zygote.py" not in outcome.stack


def test_a_real_segmentation_fault(bench: Bench) -> None:
    outcome = bench.run(tasks.segfault.call())
    assert (outcome.status, outcome.signal) == (Status.CRASHED, "SIGSEGV")
    assert "in segfault" in outcome.stack


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1"])
def test_signals_that_a_task_sends_to_itself(bench: Bench, name: str) -> None:
    outcome = bench.run(tasks.crash.call(name))
    assert (outcome.status, outcome.signal) == (Status.CRASHED, name)


def test_sigkill_is_told_apart_from_ours(bench: Bench) -> None:
    outcome = bench.run(tasks.crash.call("SIGKILL"))
    assert (outcome.status, outcome.signal) == (Status.CRASHED, "SIGKILL")
    assert outcome.blame is Blame.INFRA
    assert "from outside" in outcome.reason


@pytest.mark.parametrize(("name", "limit"), [("SIGXCPU", "cpu"), ("SIGXFSZ", "file_size")])
def test_signals_of_limits(bench: Bench, name: str, limit: str) -> None:
    outcome = bench.run(tasks.crash.call(name))
    assert (outcome.status, outcome.limit) == (Status.LIMIT_EXCEEDED, limit)


def test_sigsys_is_a_violation(bench: Bench) -> None:
    assert bench.run(tasks.crash.call("SIGSYS")).status is Status.POLICY_VIOLATION


def test_a_task_that_nobody_knows(bench: Bench) -> None:
    from fumehood.common import task

    @task(name="elsewhere.unknown")
    def unknown() -> None: ...

    outcome = bench.run(unknown.call())
    assert outcome.status is Status.REJECTED
    assert "elsewhere.unknown" in outcome.reason


def test_what_an_outcome_says(bench: Bench) -> None:
    outcome = bench.run(tasks.add.call(1, 2), job_id="a-job")
    assert (outcome.job_id, outcome.task) == ("a-job", tasks.add.name)
    assert outcome.usage.cpu > 0
    assert 0 < outcome.usage.wall < 20
    assert outcome.finished_at > 1.7e9
    assert outcome.leaked_processes == 0
    about = bench.run(tasks.about.call(), job_id="a-job").value
    assert about == ["a-job", tasks.about.name, 1, ""]
    timeout, left = bench.run(tasks.remaining.call(), timeout=15.0).value
    assert timeout == 15.0
    assert 0 < left <= 15.0
