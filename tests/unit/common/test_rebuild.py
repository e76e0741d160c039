"""What annotations make of plain values. String annotations: this module has them throughout."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel

from fumehood.common.codec import decode, encode
from fumehood.common.rebuild import Plan, RebuildError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1


class Kind(enum.StrEnum):
    PLAIN = "plain"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Tree:
    colour: Colour
    children: list[Tree] = dataclasses.field(default_factory=list)
    parent: Tree | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Base:
    size: Size


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order(Base):
    tree: Tree
    doubled: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", 2 * self.size)


@dataclasses.dataclass
class Half:
    known: Colour
    unknown: Missing  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


class Invoice(BaseModel):
    model_config = ConfigDict(strict=True)
    when: datetime
    colour: Colour
    tree: Tree
    number: int = Field(default=0, alias="no")


class PaidInvoice(Invoice):
    paid: bool


class Names(RootModel[list[str]]):
    pass


class Options(TypedDict):
    colour: Colour


UserColour = NewType("UserColour", Colour)
TREE = Tree(Colour.RED, [Tree(Colour.BLUE)], Tree(Colour.BLUE))
WHEN = datetime(2020, 1, 1, tzinfo=UTC)


def annotated(annotation: Any) -> Plan:
    def function(value: Any) -> None: ...

    function.__annotations__ = {"value": annotation, "return": annotation}
    return Plan(function)


def sent(value: Any) -> Any:
    return decode(encode(value))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        *((Colour, Colour.RED), (Size, Size.SMALL), (Kind, Kind.PLAIN)),
        (Rights, Rights.READ | Rights.WRITE),
        *((Tree, TREE), (Order, Order(Size.SMALL, tree=TREE)), (Point, Point(1, Colour.BLUE))),
        (Invoice, Invoice(when=WHEN, colour=Colour.RED, tree=TREE, no=3)),
        (PaidInvoice, PaidInvoice(when=WHEN, colour=Colour.RED, tree=TREE, no=3, paid=True)),
        (Names, Names(["a", "b"])),
        *((list[Names], [Names(["a"])]), (list[Invoice], [])),
        *((Optional[Colour], None), (Colour | None, Colour.RED), (int | Tree, TREE)),  # noqa: UP045
        *((Size | Tree | None, TREE), (str | Colour, "red"), (Colour | str, "other")),
        *((list[Colour], [Colour.RED]), (set[Colour], {Colour.RED, Colour.BLUE})),
        *((frozenset[Colour], frozenset({Colour.RED})), (tuple[Colour, ...], (Colour.RED,))),
        *((tuple[int, Colour], (1, Colour.RED)), (Sequence[Tree], [TREE])),
        *((dict[Colour, Tree], {Colour.RED: TREE}), (Mapping[str, Size], {"a": Size.SMALL})),
        *((Annotated[Colour, "note"], Colour.RED), (UserColour, Colour.RED)),
        (Literal[Colour.RED, "other"], Colour.RED),
        (dict[str, list[tuple[int, Colour | None]]], {"a": [(1, None), (2, Colour.BLUE)]}),
    ],
    ids=str,
)
def test_a_value_comes_back_as_it_was_annotated(annotation: Any, value: Any) -> None:
    plan = annotated(annotation)
    (rebuilt,), _ = plan.arguments([sent(value)], {})
    assert rebuilt == value
    assert type(rebuilt) is type(value)
    assert repr(rebuilt) == repr(value)
    if plan.result is not None:
        assert plan.result(sent(value)) == value
    # A task run in place is handed what is built already.
    assert plan.arguments([value], {}) == ([value], {})


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        *((int, "not checked"), (list[int], (1, 2)), (dict[str, Any], 5), (Any, {"a": 1})),
        *((Options, {"colour": "red"}), (None, None), (enum.Enum, "red"), (3, 4)),
        (Callable[[int], Colour], {"a": 1}),
    ],
    ids=str,
)
def test_what_is_plain_stays_plain(annotation: Any, value: Any) -> None:
    plan = annotated(annotation)
    assert plan.result is None
    assert plan.arguments([value], {}) == ([value], {})


@pytest.mark.parametrize(
    ("annotation", "value", "path", "why"),
    [
        (Colour, "green", "value", "'green' is not a valid Colour"),
        (Tree, 5, "value", "expected the fields of Tree, got int"),
        (Tree, {"colour": "green"}, "value.colour", "'green' is not a valid Colour"),
        (Tree, {"colour": "red", "children": [{}]}, "value.children[0]", "'colour'"),
        (Tree, {"colour": "red", "no": 1}, "value", "Tree has no fields"),
        (Tree, None, "value", "got NoneType"),
        (list[Tree], 5, "value", "expected a list, got int"),
        (dict[str, Tree], {"a": {"colour": 1}}, "value['a'].colour", "1 is not a valid Colour"),
        (dict[Colour, int], {"green": 1}, "value key 'green'", "not a valid Colour"),
        (dict[Colour, int], [], "value", "expected a dict, got list"),
        (tuple[int, Colour], (1, "red", 3), "value", "expected 2 items, got 3"),
        (tuple[int, Colour], (1, "green"), "value[1]", "not a valid Colour"),
        (Point, (1, "green"), "value.colour", "not a valid Colour"),
        (Point, (1, "red", 3), "value", "Point has 2 fields, got 3"),
        (Tree | None, {"colour": "green"}, "value", "no option fits"),
        (Invoice, {"when": WHEN, "colour": "red"}, "value.tree", "Field required"),
    ],
)
def test_a_wrong_shape_is_named_with_its_path(
    annotation: Any, value: Any, path: str, why: str
) -> None:
    with pytest.raises(RebuildError) as caught:
        annotated(annotation).arguments([value], {})
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_kind_of_parameter() -> None:
    def function(first: Colour, /, *rest: Size, last: Tree, **others: Colour | None) -> Point:
        return Point(0)

    plan = Plan(function)
    args, kwargs = plan.arguments(["red", 1, 1], {"last": {"colour": "red"}, "more": "blue"})
    assert args == [Colour.RED, Size.SMALL, Size.SMALL]
    assert kwargs == {"last": Tree(Colour.RED), "more": Colour.BLUE}
    assert all(type(size) is Size for size in args[1:])
    assert plan.result is not None
    assert plan.result((1, "blue")) == Point(1, Colour.BLUE)
    with pytest.raises(RebuildError, match=r"^rest\[1\]: 7 is not"):
        plan.arguments(["red", 1, 7], {"last": {"colour": "red"}})
    with pytest.raises(RebuildError, match=r"^others\['more'\]: "):
        plan.arguments(["red"], {"last": {"colour": "red"}, "more": "green"})
    with pytest.raises(TypeError, match="missing a required"):
        plan.arguments(["red"], {})


def test_none_is_fine_where_it_is_the_default() -> None:
    def function(colour: Colour = None) -> None: ...  # type: ignore[assignment]  # pyright: ignore[reportUndefinedVariable]

    assert Plan(function).arguments([None], {}) == ([None], {})


def test_only_what_cannot_be_resolved_stays_plain() -> None:
    def function(known: Colour, unknown: Missing, half: Half) -> Missing: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

    half = {"known": "red", "unknown": {"a": 1}}
    args, _ = Plan(function).arguments(["red", {"a": 1}, half], {})
    assert args == [Colour.RED, {"a": 1}, Half(Colour.RED, {"a": 1})]
    assert Plan(function).result is None


def test_a_field_that_the_class_computes_is_left_to_it() -> None:
    plain = sent(Order(Size.SMALL, tree=TREE)) | {"doubled": 99}
    (order,), _ = annotated(Order).arguments([plain], {})
    assert order.doubled == 2


def test_an_alias_is_read_as_well_as_the_name() -> None:
    parts = {"when": WHEN, "colour": "red", "tree": {"colour": "red"}}
    for name in ("no", "number"):
        (invoice,), _ = annotated(Invoice).arguments([parts | {name: 7}], {})
        assert invoice.number == 7
