"""The verdict: every rule, and that the first match wins."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace

import pytest

from fumehood.common import Blame, ErrorInfo, Status
from fumehood.worker.sandbox.verdict import Facts, KillReason, Result, decide, signal_name

VALUE = Result(value=b"\xc0")
ERROR = Result(error=ErrorInfo("ValueError", "no"))


def _exited(code: int) -> int:
    return code << 8


FACTS = [
    (Facts(True, VALUE, wait_status=0), Status.SUCCEEDED, Blame.NOBODY),
    (Facts(True, VALUE, wait_status=None), Status.SUCCEEDED, Blame.NOBODY),
    (Facts(True, ERROR, wait_status=0), Status.FAILED, Blame.TASK),
    (Facts(True, Result(too_large=9), wait_status=0), Status.LIMIT_EXCEEDED, Blame.LIMIT),
    (Facts(True, Result(refused="x"), wait_status=0), Status.REJECTED, Blame.POLICY),
    (Facts(True, wait_status=_exited(0)), Status.EXITED, Blame.TASK),
    (Facts(True, wait_status=_exited(9)), Status.EXITED, Blame.TASK),
    (Facts(True, wait_status=None), Status.CRASHED, Blame.INFRA),
    (Facts(True, wait_status=signal.SIGSEGV | 0x80), Status.CRASHED, Blame.TASK),
    (Facts(True, wait_status=signal.SIGTERM), Status.CRASHED, Blame.TASK),
    (Facts(True, wait_status=signal.SIGKILL), Status.CRASHED, Blame.INFRA),
    (Facts(True, wait_status=signal.SIGSYS), Status.POLICY_VIOLATION, Blame.POLICY),
    (Facts(True, wait_status=signal.SIGXCPU), Status.LIMIT_EXCEEDED, Blame.LIMIT),
    (Facts(True, wait_status=signal.SIGXFSZ), Status.LIMIT_EXCEEDED, Blame.LIMIT),
    (Facts(False, wait_status=_exited(70)), Status.START_FAILED, Blame.INFRA),
    (Facts(False, wait_status=signal.SIGSEGV), Status.START_FAILED, Blame.INFRA),
    (Facts(True, protocol_fault="x", wait_status=0), Status.PROTOCOL_ERROR, Blame.TASK),
]


@pytest.mark.parametrize(("facts", "status", "blame"), FACTS)
def test_rules(facts: Facts, status: Status, blame: Blame) -> None:
    outcome = decide(facts)
    assert (outcome.status, outcome.blame) == (status, blame)
    assert outcome.ok or outcome.reason


REASONS = {
    KillReason.DEADLINE: (Status.TIMED_OUT, Blame.LIMIT),
    KillReason.CANCELLED: (Status.CANCELLED, Blame.POLICY),
    KillReason.SHUTDOWN: (Status.CANCELLED, Blame.INFRA),
    KillReason.START: (Status.START_FAILED, Blame.INFRA),
}


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("status", [signal.SIGKILL, _exited(0), _exited(3), signal.SIGSYS, None])
@pytest.mark.parametrize("ready", [True, False])
def test_our_own_reason_comes_before_what_the_kernel_says(
    reason: KillReason, status: int | None, ready: bool
) -> None:
    outcome = decide(Facts(ready, kill_reason=reason, wait_status=status, timeout=2.5))
    assert (outcome.status, outcome.blame) == REASONS[reason]


@pytest.mark.parametrize("reason", REASONS)
def test_a_result_before_the_kill_comes_first(reason: KillReason) -> None:
    facts = Facts(True, VALUE, kill_reason=reason, wait_status=0)
    assert decide(facts).status is Status.SUCCEEDED
    late = replace(facts, result_before_kill=False)
    assert decide(late).status is REASONS[reason][0]
    killed = replace(facts, wait_status=int(signal.SIGKILL))
    assert decide(killed).status is REASONS[reason][0]


@pytest.mark.parametrize("result", [VALUE, ERROR, Result(too_large=1), Result(refused="x")])
def test_a_result_does_not_hide_a_bad_end(result: Result) -> None:
    assert decide(Facts(True, result, wait_status=_exited(1))).status is Status.EXITED
    assert decide(Facts(True, result, wait_status=int(signal.SIGSEGV))).status is Status.CRASHED
    broken = Facts(True, result, wait_status=0, protocol_fault="two")
    assert decide(broken).status is Status.PROTOCOL_ERROR


def test_a_broken_protocol() -> None:
    for reason, status in itertools.product(
        (None, KillReason.PROTOCOL), (0, int(signal.SIGKILL), _exited(70), None)
    ):
        facts = Facts(True, kill_reason=reason, wait_status=status, protocol_fault="odd")
        outcome = decide(facts)
        assert outcome.status is Status.PROTOCOL_ERROR
        assert "odd" in outcome.reason
    timed_out = Facts(True, kill_reason=KillReason.DEADLINE, protocol_fault="odd", wait_status=9)
    assert decide(timed_out).status is Status.TIMED_OUT


def test_a_failed_start_names_its_stage() -> None:
    outcome = decide(Facts(False, setup_fault=("cgroup", 19, "gone"), wait_status=_exited(70)))
    assert outcome.stage == "cgroup"
    assert "gone (No such device)" in outcome.reason
    assert decide(Facts(False)).stage == "ready"


def test_what_is_added() -> None:
    outcome = decide(Facts(True, VALUE, wait_status=0), job_id="j", stdout=b"x")
    assert (outcome.job_id, outcome.stdout, outcome.value) == ("j", b"x", None)


def test_names_of_signals() -> None:
    assert signal_name(11) == "SIGSEGV"
    assert signal_name(40) == "SIG40"
