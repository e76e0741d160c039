"""Round trips of every kind of value, and the errors for values that cannot be carried."""

import collections
import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, RootModel

from fumehood.common.codec import decode, encode
from fumehood.common.decoding import MAX_EXT_DEPTH
from fumehood.common.errors import InvalidArguments

ZONES = st.sampled_from([None, UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")]) | st.builds(
    timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KEYS = st.one_of(
    st.booleans(),
    st.integers(),
    TEXT,
    st.binary(max_size=20),
    st.uuids(),
    st.dates(),
    st.timedeltas(),
)
SCALARS = st.one_of(
    KEYS,
    st.none(),
    st.floats(),
    st.complex_numbers(),
    st.decimals(),
    st.builds(
        lambda moment, fold: moment.replace(fold=fold),
        st.datetimes(timezones=ZONES),
        st.integers(0, 1),
    ),
    st.builds(lambda moment, zone: moment.replace(tzinfo=zone), st.times(), ZONES),
    st.lists(st.text("abc./", min_size=1), min_size=1).map(lambda parts: Path(*parts)),
)
VALUES = st.recursive(
    SCALARS | st.frozensets(KEYS, max_size=4) | st.sets(KEYS, max_size=4),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS | st.tuples(KEYS, KEYS), inner, max_size=4),
    ),
    max_leaves=12,
)


def shape(value: Any) -> Any:
    """A value with its exact types, comparable where NaN, -0.0 and fold are not."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [shape(part) for part in value]
    if kind in (set, frozenset):
        return kind, sorted(repr(shape(part)) for part in value)
    if kind is dict:
        return kind, [(shape(key), shape(part)) for key, part in value.items()]
    if kind in (datetime, time):
        zone = value.tzinfo
        zone = zone.utcoffset(None) if isinstance(zone, timezone) else zone
        return kind, value.replace(tzinfo=None).isoformat(), zone, value.fold
    return kind, repr(value)


@settings(deadline=None)
@given(VALUES)
def test_a_value_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    assert shape(decode(encode(value))) == shape(value)


@pytest.mark.parametrize(
    "value",
    [
        *([], (), {}, set(), frozenset(), "", b""),
        *(10**1000, -(10**1000), 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, True, False),
        *(math.inf, -math.inf, -0.0),
        *(datetime.min, datetime.max),  # noqa: DTZ901
        *(time.min, time.max, date.min, date.max),
        *(timedelta.min, timedelta.max),
        datetime(2020, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=-5, seconds=7, microseconds=9))),
        time(1, 2, 3, 4, tzinfo=UTC),
        *(
            Decimal("NaN"),
            Decimal("sNaN123"),
            Decimal("-Infinity"),
            Decimal("1E+999999"),
            Decimal("-0.00"),
        ),
        Path("/"),
        {(1, (2, 3)): {frozenset({1})}},
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_edges_of_every_type(value: Any) -> None:
    assert shape(decode(encode(value))) == shape(value)


def test_an_integer_of_a_million_digits() -> None:
    number = 1 << 3_321_928
    assert decode(encode(number)) == number


class Name(str):
    """A subclass of text whose ``str()`` is something else."""

    __slots__ = ()

    def __str__(self) -> str:
        return "shown"


class Count(int):
    def __int__(self) -> int:
        return 99


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, {"a": 2})


class Rights(enum.IntFlag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Order:
    colour: Colour
    place: Point


class Model(BaseModel):
    when: datetime
    order: Order


class Names(RootModel[list[str]]):
    pass


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Name("text"), "text"),
        (Count(5), 5),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.ChainMap({"a": 1}), {"a": 1}),
        (Point(1, 2), (1, 2)),
        (Colour.RED, "red"),
        (Colour.PAIR, (1, {"a": 2})),
        (Rights.READ | Rights.WRITE, 3),
        (Order(Colour.RED, Point(1, 2)), {"colour": "red", "place": (1, 2)}),
        (
            Model(when=datetime(2020, 1, 1), order=Order(Colour.RED, Point(1, 2))),  # noqa: DTZ001
            {"when": datetime(2020, 1, 1), "order": {"colour": "red", "place": (1, 2)}},  # noqa: DTZ001
        ),
        (Names(["a"]), ["a"]),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (PurePosixPath("a/b"), Path("a/b")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_travels_as_something_plainer(value: Any, plain: Any) -> None:
    assert shape(decode(encode(value))) == shape(plain)


# --- values that cannot be carried ---------------------------------------------------------


class NoZone(tzinfo):
    """A zone that is neither a key nor a fixed offset."""

    def utcoffset(self, when: datetime | None, /) -> timedelta:
        return timedelta(0)

    def dst(self, when: datetime | None, /) -> None:
        return None

    def tzname(self, when: datetime | None, /) -> None:
        return None


class Liar:
    def __getattribute__(self, name: str) -> Any:
        return int if name == "__class__" else object.__getattribute__(self, name)


class Raises(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise RuntimeError("first line\nsecond line")

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


class RaisesOnIteration(list[int]):
    def __iter__(self) -> Iterator[int]:
        raise RuntimeError("no items today")


class RaisesOnEverything:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class RaisesOnRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no name")


@dataclasses.dataclass(frozen=True)
class Key:
    x: int


@dataclasses.dataclass
class Holder:
    inside: Any


class Alike(enum.Enum):
    ONE = 1


def nested_in(depth: int, wrap: Any) -> Any:
    value: Any = wrap(())
    for _ in range(depth):
        value = wrap((value,))
    return value


LOOP: list[Any] = []
LOOP.append({"again": LOOP})

FAULTS: list[tuple[Any, str, str]] = [
    (object(), "args", "a value of type object cannot be carried"),
    (int, "args", "a value of type type cannot be carried"),
    ((n for n in [1]), "args", "a value of type generator"),
    (Liar(), "args", f"a value of type {__name__}.Liar"),
    ([1, {"k": (2, object())}], "args[1]['k'][1]", "a value of type object"),
    ([{"when": datetime(2020, 1, 1, tzinfo=NoZone())}], "args[0]['when'].tz", "zoneinfo.ZoneInfo"),
    (Holder([object()]), "args.inside[0]", "a value of type object"),
    ({"a": {1, Liar}}, f"args['a'] element {Liar!r}"[:60], "a value of type type"),
    ({Key(1): 2}, "args key Key(x=1)", "no key and no element"),
    ([{Key(1)}], "args[0] element Key(x=1)", "no key and no element"),
    ({"a": {Alike.ONE, 1}}, "args['a']", "alike once encoded"),
    ([{Alike.ONE: 1, 1: 2}], "args[0]", "alike once encoded"),
    (LOOP, "args[0]['again']", "contains itself"),
    (nested_in(100_000, list), "args[0][0]", "nested deeper"),
    (nested_in(MAX_EXT_DEPTH, tuple), "args", "nest deeper than 32"),
    ({"a": "\ud800"}, "args['a']", "lone surrogates"),
    ({"\ud800": 1}, "args key '\\ud800'", "lone surrogates"),
    ([Path("\udcff")], "args[0]", "lone surrogates"),
    ([PureWindowsPath("c:/x")], "args[0]", "a Windows path"),
    ([memoryview(b"abcdef")[::2]], "args[0]", "memoryview with gaps"),
    ([Raises()], "args[0]", "reading it raised RuntimeError: first line second line"),
    ([RaisesOnIteration([1])], "args[0]", "reading it raised RuntimeError: no items today"),
    ([RaisesOnEverything()], "args[0]", "RaisesOnEverything cannot be carried"),
    ([{RaisesOnRepr(): 1}], "args[0]", "reading it raised RuntimeError: no name"),
]


@pytest.mark.parametrize(("value", "path", "why"), FAULTS, ids=[why for _, _, why in FAULTS])
def test_a_fault_is_named_with_its_path(value: Any, path: str, why: str) -> None:
    with pytest.raises(InvalidArguments) as caught:
        encode(value, "args")
    assert caught.value.path.startswith(path)
    if "deeper" not in why:
        assert len(caught.value.path) - len(path) < 60
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_deepest_nesting_that_is_allowed_comes_back() -> None:
    value = nested_in(MAX_EXT_DEPTH - 1, tuple)
    assert decode(encode(value)) == value
