"""What type checkers make of tasks and calls; ``snippets/calls.py`` says what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CALLS = Path(__file__).with_name("snippets") / "calls.py"


def check(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(params=["mypy", "pyright"])
def checker(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    name: str = request.param
    pytest.importorskip(name, reason="the type checkers belong to `make check`")
    if name == "mypy":
        return ["mypy", "--cache-dir", str(tmp_path)]
    return ["pyright", "--project", str(ROOT)]


def test_calls_are_typed(checker: list[str]) -> None:
    ran = check(*checker, str(CALLS))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_claim_that_does_not_hold_is_noticed(checker: list[str], tmp_path: Path) -> None:
    """The snippets would prove nothing if a comment that silences nothing were let through."""
    planted = tmp_path / "planted.py"
    source = CALLS.read_text(encoding="utf-8")
    planted.write_text(source.replace('add(2, "x")', "add(2, 3)", 1), encoding="utf-8")
    ran = check(*checker, str(planted))
    line = source[: source.index('add(2, "x")')].count("\n") + 1
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert f"planted.py:{line}" in ran.stdout
