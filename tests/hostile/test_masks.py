"""Degraded hosts: what each mask takes away, and that the rest holds without it.

A part of the matrix: for each mask the cases whose outcome depends on it, and a few of each kind.
``make hostile`` runs all of them.
"""

from __future__ import annotations

import pytest

from hostile.case import MECHANISMS, Case, NotRun, Profile
from hostile.cases import KINDS
from hostile.fixtures import PROFILES
from hostile.harness import Stage
from hostile.matrix import in_batches
from hostile.scene import MASKS, Scene

_CORE = frozenset(
    {
        "sleep", "gil", "signals-blocked", "threads", "daemons-plain", "daemons-treadmill",
        "daemons-and-hang", "runs-away", "shakes-off", "sigsegv", "sigkill", "exit-0",
        "leaves-threads",
        "size-102400", "too-large", "flood", "coroutine", "everything-changed",
        "patches", "chance-0", "heap", "pair", "asyncio", "ten-thousand-frames", "capabilities",
    }
)  # fmt: skip
_SLOTS = 4


def cases_for(lost: frozenset[str]) -> list[Case]:
    """Those that the loss concerns, and the core."""
    return [
        case for cases in KINDS.values() for case in cases if case.id in _CORE or case.needs & lost
    ]


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS[1:], ids=[",".join(mask) for mask in MASKS[1:]])
@pytest.mark.parametrize("profile", PROFILES)
def test_without(profile: Profile, mask: tuple[str, ...]) -> None:
    scene = Scene(profile, mask)
    found: dict[str, list[str]] = {}
    with Stage(scene, _SLOTS) as stage:
        cases = [case for case in cases_for(scene.lost | set(mask)) if stage.plan(case) is None]
        for batch in in_batches(cases, _SLOTS):
            found |= stage.check(*batch)
        found["the end"] = stage.stop()
    assert not {case: texts for case, texts in found.items() if texts}


# --- the tables themselves ------------------------------------------------------------------


def test_every_case_has_an_expectation_in_every_scene() -> None:
    for kind, cases in KINDS.items():
        assert len({case.id for case in cases}) == len(cases), f"two of one name in {kind}"
        for case in cases:
            assert case.needs <= MECHANISMS, case.id
            for profile in PROFILES:
                expected = case.expectation(profile, MECHANISMS)
                assert not isinstance(expected, NotRun) or expected.why


def test_core_cases_exist() -> None:
    known = {case.id for cases in KINDS.values() for case in cases}
    assert not _CORE - known
