"""Outcomes: their errors, values and descriptions."""

import dataclasses

import pytest

from fumehood.common import ErrorInfo, JobError, JobTimedOut, Outcome, Status, Usage, errors
from fumehood.common.codec import encode
from fumehood.common.errors import DecodeError

UNSUCCESSFUL = [status for status in Status if status is not Status.SUCCEEDED]


@pytest.mark.parametrize("status", UNSUCCESSFUL)
def test_every_status_has_an_error_of_its_own(status: Status) -> None:
    outcome = Outcome(status, "id", "app.add")
    name = "Job" + "".join(word.capitalize() for word in status.value.split("_"))
    with pytest.raises(JobError) as caught:
        outcome.unwrap()
    assert type(caught.value) is getattr(errors, name)
    assert caught.value.outcome is outcome
    assert not outcome.ok
    assert outcome.value is None


def test_every_job_error_belongs_to_a_status() -> None:
    raised = {type(Outcome(status).as_error()) for status in UNSUCCESSFUL}
    assert raised == set(JobError.__subclasses__())


def test_a_job_that_timed_out_is_a_timeout_error() -> None:
    with pytest.raises(TimeoutError) as caught:
        Outcome(Status.TIMED_OUT).unwrap()
    assert isinstance(caught.value, JobTimedOut)


def test_a_value_is_decoded_when_asked_for() -> None:
    outcome = Outcome(Status.SUCCEEDED, value_bytes=encode((1, {2})))
    assert outcome.ok
    assert outcome.unwrap() == outcome.value == (1, {2})
    assert Outcome(Status.SUCCEEDED, value_bytes=encode(None)).unwrap() is None
    with pytest.raises(DecodeError):
        Outcome(Status.SUCCEEDED, value_bytes=b"\xc1").unwrap()
    with pytest.raises(ValueError, match="no error"):
        outcome.as_error()


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        (Outcome(Status.TIMED_OUT), "timed out"),
        (Outcome(Status.TIMED_OUT, "id"), "job [id]: timed out"),
        (Outcome(Status.CRASHED, "id", "app.add", reason="SIGSEGV"), "app.add [id]: SIGSEGV"),
        (
            Outcome(Status.FAILED, "id", "app.add", error=ErrorInfo("ValueError", "too few")),
            "app.add [id]: ValueError: too few",
        ),
        (Outcome(Status.FAILED, error=ErrorInfo("KeyboardInterrupt", "")), "KeyboardInterrupt"),
    ],
)
def test_an_outcome_in_a_sentence(outcome: Outcome, sentence: str) -> None:
    assert outcome.describe() == sentence
    assert str(outcome.as_error()) == sentence


def test_an_outcome_is_frozen_and_completed_by_a_copy() -> None:
    outcome = Outcome(Status.LOST)
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcome.node = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    completed = outcome.of_job(job_id="id", usage=Usage(wall=1.0))
    assert (completed.status, completed.job_id, completed.usage.wall) == (Status.LOST, "id", 1.0)
    assert outcome.job_id == ""


def test_statuses_read_as_text() -> None:
    assert f"{Status.TIMED_OUT}" == str(Status.TIMED_OUT) == Status.TIMED_OUT.value == "timed_out"
