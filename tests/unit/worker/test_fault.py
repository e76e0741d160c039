"""Exceptions as bounded text, whatever their classes do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from fumehood.worker.sandbox.fault import MESSAGE_MAX, TRACEBACK_MAX, clip, describe, type_name


def _described(exc: BaseException) -> tuple[str, str, str]:
    started = time.monotonic()
    parts = describe(exc, skip="nowhere")
    assert time.monotonic() - started < 5
    for part, bound in zip(parts, (700, MESSAGE_MAX, TRACEBACK_MAX), strict=True):
        part.encode()
        assert len(part) <= 6 * bound + 100
    return parts


def _raised(exc: BaseException) -> BaseException:
    try:
        raise exc
    except BaseException as caught:  # noqa: BLE001
        return caught


def test_a_plain_one() -> None:
    kind, message, trace = _described(_raised(ValueError("no")))
    assert (kind, message) == ("ValueError", "no")
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.endswith("ValueError: no\n")
    assert "in _raised" in trace


def test_frames_can_be_skipped() -> None:
    _, _, trace = describe(_raised(ValueError("no")), skip=__file__)
    assert trace == "ValueError: no\n"


class Raising(Exception):
    raises: BaseException = ValueError("inner")

    def __str__(self) -> str:
        raise self.raises

    __repr__ = __str__


@pytest.mark.parametrize(
    "inner", [ValueError(), SystemExit(), KeyboardInterrupt(), RecursionError(), GeneratorExit()]
)
def test_a_str_that_raises(inner: BaseException) -> None:
    exc = Raising()
    exc.raises = inner
    assert _described(_raised(exc))[1] == "<unprintable>"


def test_a_str_that_is_no_text() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            return 7  # type: ignore[return-value]  # noqa: PLE0307 - on purpose

    class Sly(str):
        __slots__ = ()

        def __str__(self) -> str:
            raise ValueError

        __len__ = __getitem__ = encode = isascii = __str__  # type: ignore[assignment]

    class Slyer(Exception):
        def __str__(self) -> str:
            return Sly("sly")

    assert _described(Odd())[1] == "<unprintable>"
    assert _described(Slyer())[1] in {"sly", "<unprintable>"}


def test_attributes_that_lie() -> None:
    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            raise RuntimeError(name)

    class Liar(Exception, metaclass=Meta):
        def __bool__(self) -> bool:
            raise KeyboardInterrupt

    def lie(_: Any) -> Any:
        raise SystemExit

    for name in ("cause", "context", "traceback", "notes", "suppress_context"):
        type.__setattr__(Liar, f"__{name}__", property(lie))
    exc = Liar("lies")
    kind, message, _ = _described(exc)
    assert kind.endswith("Liar")
    assert message == "lies"


def test_a_falsy_cause_is_a_cause() -> None:
    class Empty(Exception):
        def __len__(self) -> int:
            return 0

    exc = ValueError("top")
    exc.__cause__ = Empty("bottom")
    assert "bottom" in _described(exc)[2]


def test_causes() -> None:
    exc = ValueError("top")
    exc.__cause__ = KeyError("cause")
    exc.__context__ = TypeError("context")
    trace = _described(exc)[2]
    assert trace.index("KeyError") < trace.index("ValueError")
    assert "TypeError" not in trace
    hidden = ValueError("top")
    hidden.__context__ = TypeError("context")
    assert "TypeError" in _described(hidden)[2]
    hidden.__suppress_context__ = True
    assert "TypeError" not in _described(hidden)[2]


def test_cyclic_causes() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    trace = _described(one)[2]
    assert trace.count("ValueError: one") == 1


def test_ten_thousand_causes() -> None:
    exc = last = ValueError(0)
    for n in range(10_000):
        last.__cause__ = ValueError(n)
        last = last.__cause__
    trace = _described(exc)[2]
    assert "more causes are left out" in trace
    while exc.__cause__ is not None:  # else their destructors recurse
        exc.__cause__, exc = None, exc.__cause__  # type: ignore[assignment]


@pytest.mark.parametrize("text", ["x", "\u20ac", "\ud800", "\U0001f600"], ids=ascii)
def test_a_message_of_a_hundred_megabytes(text: str) -> None:
    exc = ValueError(text * (25 << 20))
    _, message, trace = _described(_raised(exc))
    assert "characters are left out" in message
    assert "characters are left out" in trace


def test_surrogates_and_odd_characters() -> None:
    kind = type("Bad", (Exception,), {"__module__": "mo\udcffd"})
    kind.__qualname__ = "Bad\udcff"
    name, message, trace = _described(_raised(kind("a\udcffb\0c")))
    assert name == "mo\\udcffd.Bad\\udcff"
    assert message == "a\\udcffb\0c"
    assert "Bad\\udcff" in trace


def test_names() -> None:
    assert type_name(ValueError()) == "ValueError"
    assert type_name(Raising()).endswith("test_fault.Raising")
    assert len(type_name(type("x" * 10**6, (Exception,), {})())) < 1000
    assert type_name(type("Odd", (Exception,), {"__module__": 7})()) == "Odd"


def test_deep_recursion() -> None:
    def deeper() -> None:
        deeper()

    with pytest.raises(RecursionError) as caught:
        deeper()
    assert "frames are left out" in _described(caught.value)[2]


def test_notes() -> None:
    exc = ValueError("no")
    exc.add_note("first")
    exc.add_note("x" * 10_000)
    assert "first\n" in _described(exc)[2]

    def endless() -> Iterator[str]:
        while True:
            yield "more"

    exc.__notes__ = endless()  # type: ignore[assignment]
    assert _described(exc)[2].count("more") == 10
    exc.__notes__ = 7  # type: ignore[assignment]
    assert "unprintable" in _described(exc)[2]
    exc.__notes__ = [Raising()]  # type: ignore[list-item]
    assert "unprintable" in _described(exc)[2]


def test_groups() -> None:
    group = ExceptionGroup("many", [ValueError(n) for n in range(30)])
    trace = _described(group)[2]
    assert "contains ValueError: 9" in trace
    assert "ValueError: 29" not in trace
    assert "(30 in all)" in trace


def test_groups_in_groups() -> None:
    group: Any = ValueError("leaf")
    for _ in range(9):
        group = ExceptionGroup("g", [group] * 10)  # a thousand million leaves
    _described(group)
    deep: Any = ValueError("leaf")
    for _ in range(5000):
        deep = ExceptionGroup("g", [deep])
    _described(deep)
    while isinstance(deep, ExceptionGroup):
        deep = deep.exceptions[0]


def test_clip() -> None:
    assert clip("abc", 10) == "abc"
    assert clip("a" * 50 + "b" * 50, 10).startswith("aaaaa\n... 90 characters")
