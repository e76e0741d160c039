"""Every case of ``cases/wire.py``, under each profile, with all invariants after it."""

from __future__ import annotations

from hostile.case import Case
from hostile.cases import wire
from hostile.fixtures import check, of, stage
from hostile.harness import Stage

__all__ = ["stage"]


@of(wire.CASES)
def test_case(stage: Stage, case: Case) -> None:
    check(stage, case)
