"""The same as an ordinary user: a chosen part here, all of it by ``make hostile``."""

from __future__ import annotations

import os

import pytest

from hostile import matrix, ordinary
from hostile.case import Profile
from hostile.fixtures import PROFILES

_KINDS = ("times", "processes", "exits", "network", "secrecy")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="who is no root runs all other tests as nobody")
@pytest.mark.skipif(not ordinary.can_become(), reason="setpriv, unshare and mount are needed")
@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("profile", PROFILES)
def test_as_an_ordinary_user(
    profile: Profile, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--user", "nobody", "--profile", profile, "--mask", "none", "--kind", kind]
    assert matrix.main(arguments) == 0, capsys.readouterr().out
