"""Sandboxes that end at each byte of each frame of the protocol, in every way to end."""

from __future__ import annotations

import pytest

from hostile.case import Profile
from hostile.cases import wire
from hostile.fixtures import PROFILES
from hostile.harness import Stage
from hostile.scene import Scene

_SIDE_BY_SIDE = 4


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", wire.FRAMES)
def test_an_end_at_every_byte(profile: Profile, kind: str) -> None:
    cases = [case for case in wire.PREFIXES if case.id.startswith(f"{kind}-")]
    # "value" is also how "value-fd" begins.
    cases = [case for case in cases if case.id.removeprefix(f"{kind}-")[0].isdigit()]
    assert len(cases) == (len(wire.FRAMES[kind]) + 1) * len(wire.ENDS)
    with Stage(Scene(profile), _SIDE_BY_SIDE) as stage:
        found: dict[str, list[str]] = {}
        for at in range(0, len(cases), _SIDE_BY_SIDE):
            found |= stage.check(*cases[at : at + _SIDE_BY_SIDE])
        found["the end"] = stage.stop()
    assert not {case: texts for case, texts in found.items() if texts}
