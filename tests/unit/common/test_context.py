"""``current_job()``: whose job it is, how long it has, what it reports."""

import math
import threading
import time
from typing import Any

import pytest

from fumehood.common import context
from fumehood.common.context import CurrentJob, current_job, running


def test_there_is_no_job_outside_of_one() -> None:
    with pytest.raises(LookupError, match="no job runs here"):
        current_job()
    with running(CurrentJob("a", "app.add")) as job:
        assert current_job() is job
    with pytest.raises(LookupError):
        current_job()


def test_a_job_inside_a_job_hides_it() -> None:
    outer, inner = CurrentJob("a", "app.add"), CurrentJob("b", "app.add")
    with running(outer):
        with running(inner):
            assert current_job() is inner
        assert current_job() is outer


def test_a_job_ends_when_its_code_raises() -> None:
    with pytest.raises(ZeroDivisionError), running(CurrentJob("a", "app.add")):
        raise ZeroDivisionError
    with pytest.raises(LookupError):
        current_job()


def in_thread(function: Any) -> Any:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except LookupError as cause:
            found.append(cause)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_that_a_task_starts_sees_the_job() -> None:
    with running(CurrentJob("a", "app.add")) as job:
        assert in_thread(current_job) is job


def test_jobs_in_two_threads_are_not_mixed_up() -> None:
    def other() -> tuple[CurrentJob, CurrentJob]:
        with running(CurrentJob("b", "app.add")) as job:
            return job, current_job()

    with running(CurrentJob("a", "app.add")) as job:
        mine, seen = in_thread(other)
        assert mine is seen
        assert current_job() is job
        with running(CurrentJob("c", "app.add")):
            # Neither of two jobs can be told to be the one that started this thread.
            assert isinstance(in_thread(current_job), LookupError)


def test_a_sandbox_enters_its_job_for_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_running", [])
    job = CurrentJob("a", "app.add")
    context.entered.append(lambda: job)
    assert current_job() is in_thread(current_job) is job


def test_remaining_seconds_never_fall_below_none() -> None:
    job = CurrentJob("a", "app.add", deadline=time.monotonic() + 10)
    assert 9 < job.remaining() <= 10
    assert CurrentJob("a", "app.add", deadline=time.monotonic() - 10).remaining() == 0.0


def test_progress_is_reported_where_somebody_listens() -> None:
    heard: list[Any] = []
    job = CurrentJob("a", "app.add", report=lambda *what: heard.append(what))
    job.progress(1)
    job.progress(0.5, "half way", data={"row": 7})
    assert heard == [(1.0, "", None), (0.5, "half way", {"row": 7})]
    CurrentJob("a", "app.add").progress(0.5)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            job.progress(wrong)
    assert repr(job) == "<CurrentJob a app.add attempt 1>"
