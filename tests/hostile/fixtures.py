"""What the tests of each kind share: a stage, and the check of one case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hostile.case import Case, Profile
from hostile.harness import Stage
from hostile.scene import Scene

PROFILES: tuple[Profile, ...] = ("trusted", "untrusted")


@pytest.fixture(scope="module", params=PROFILES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A sandbox of each profile, for the user that runs the tests."""
    stage = Stage(Scene(request.param))
    with stage:
        yield stage
        left = stage.stop()
    assert not left, left


def of(cases: list[Case]) -> pytest.MarkDecorator:
    """The parametrisation over a table."""
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def check(stage: Stage, case: Case) -> None:
    """Run one case and look at everything. Skips, with its reason, what would only do harm."""
    unfit = stage.plan(case)
    if unfit is not None:
        pytest.skip(unfit.why)
    complaints = stage.check(case)[case.id]
    assert not complaints, "\n".join(complaints)
