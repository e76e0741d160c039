"""Each stage of a sandbox's set-up, made to fail: START_FAILED with its name, never the task's."""

from __future__ import annotations

import errno
import logging

import pytest
from support.sandboxes import Bench, cgroups_of, make_settings, newcomers

from fumehood.common import Blame, Status
from fumehood.worker import Sandbox
from fumehood.worker.sandbox import child, lockdown
from fumehood.worker.sandbox.killer import children_of
from hostile.case import Profile
from hostile.fixtures import PROFILES
from hostile.tasks import canary

_MODULES = ("hostile.tasks.canary",)


def _sandbox(profile: Profile, *disable: str) -> Sandbox:
    settings = make_settings(disable, untrusted_requires=())
    return Sandbox(_MODULES, 1, profile, settings=settings)


_STAGES: list[tuple[Profile, str]] = [
    *(("trusted", stage) for stage in child.STAGES),
    *(("untrusted", stage) for stage in (*child.STAGES, *lockdown.STAGES)),
]


@pytest.mark.parametrize(("profile", "stage"), _STAGES)
def test_a_stage_that_fails(profile: Profile, stage: str, caplog: pytest.LogCaptureFixture) -> None:
    import os

    caplog.set_level(logging.CRITICAL, "fumehood.sandbox")  # each failure is a warning there
    known = children_of(os.getpid())
    with Bench(_sandbox(profile, f"fail:{stage}")) as bench:
        outcome = bench.run(canary.ping.call(1), timeout=5.0)
        assert (outcome.status, outcome.blame) == (Status.START_FAILED, Blame.INFRA), outcome
        assert outcome.stage == stage
        assert os.strerror(errno.EPERM) in outcome.reason
        again = bench.run(canary.ping.call(1), timeout=5.0)
        assert (again.status, again.stage) == (Status.START_FAILED, stage)
    assert not newcomers(known)
    assert not cgroups_of(os.getpid())


@pytest.mark.parametrize("profile", PROFILES)
def test_no_stage_that_fails(profile: Profile) -> None:
    """The control: without the injection the same sandbox runs the same task."""
    with Bench(_sandbox(profile)) as bench:
        outcome = bench.run(canary.ping.call(1))
        assert (outcome.status, outcome.value) == (Status.SUCCEEDED, 2), outcome


def test_stages_are_named_once() -> None:
    assert len(set(child.STAGES)) == len(child.STAGES) > 3
