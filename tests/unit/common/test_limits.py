"""Sizes as text, limits that cap each other, limits on the wire."""

from typing import Any

import pytest

from fumehood.common import ConfigurationError, Limits
from fumehood.common.limits import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *((0, 0), (5, 5), ("5", 5), (" 5 B ", 5), ("8MiB", 8 << 20), ("1.5 kib", 1536)),
        *(("2kB", 2000), ("3MB", 3_000_000), ("1GB", 10**9), ("1GiB", 1 << 30)),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "MiB", "5 XB", "-5", "1e3", "nan", "5 MiB 3", "9" * 400, "999999999999999 GiB"),
        *(-1, True, 1.5, None, b"5", [], 2**63),
    ],
    ids=lambda wrong: repr(wrong)[:20],
)
def test_a_wrong_size(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="size"):
        parse_size(wrong)


def test_limits_read_text() -> None:
    limits = Limits(output="1MiB", result=10)
    assert (limits.output, limits.result) == (1 << 20, 10)
    assert limits == Limits(output=1 << 20, result="10")
    with pytest.raises(ConfigurationError):
        Limits(output="much")


def test_a_cap_fills_gaps_and_lowers_what_is_above_it() -> None:
    cap = Limits(output=100)
    assert Limits().tightened(cap) == Limits(output=100)
    assert Limits(output=50, result=7).tightened(cap) == Limits(output=50, result=7)
    assert Limits(output=500).tightened(cap) == Limits(output=100)
    assert Limits(output=0).tightened(cap) == Limits(output=0)


@pytest.mark.parametrize("limits", [Limits(), Limits(output=0), Limits(output=1, result=2)])
def test_limits_travel_as_what_is_set(limits: Limits) -> None:
    wire = limits.to_wire()
    assert Limits.from_wire(wire) == limits
    assert None not in wire.values()


def test_an_unknown_limit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown limits \['colour'\]: known are"):
        Limits.from_wire({"colour": 5})
