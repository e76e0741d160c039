"""Declaring tasks, binding calls, enqueueing through a client, timeouts."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fumehood.common import (
    ConfigurationError,
    InvalidArguments,
    Limits,
    UnknownTask,
    registry,
    task,
)
from fumehood.common.task import AsyncTask, Registry, SyncTask, check_timeout


@task
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@task
async def later(a: int) -> int:
    return a


@task(queue="legacy", progress=False)
def old(data: list[int]) -> int:
    return len(data)


@task(
    name="shop.full", queue="q", timeout=5, limits=Limits(output="1KiB"), profile="untrusted",
    progress=True,
)  # fmt: skip
def full() -> None: ...


@task
def clashing(timeout: float, reply: bool) -> None: ...


def test_a_plain_declaration() -> None:
    assert isinstance(add, SyncTask)
    assert add.name == add.task_id == f"{__name__}.add"
    assert (add.__name__, add.__doc__, add.__module__) == ("add", "Add two numbers.", __name__)
    assert (add.options.queue, add.options.timeout, add.options.profile) == (
        "default",
        None,
        "trusted",
    )
    assert add(2, b=3) == 5
    assert not add.is_async
    assert repr(add) == f"<Task {__name__}.add queue=default>"


async def _await(awaitable: Any) -> Any:
    return await awaitable


def test_a_coroutine_function() -> None:
    import asyncio

    assert isinstance(later, AsyncTask)
    assert later.is_async
    assert asyncio.run(_await(later(3))) == 3


def test_options_on_a_plain_function() -> None:
    assert old([1, 2]) == 2
    assert (old.options.queue, old.options.progress) == ("legacy", False)
    assert full.name == "shop.full"
    assert full.options.limits == Limits(output=1024)
    assert (full.options.timeout, full.options.profile, full.options.progress) == (
        5,
        "untrusted",
        True,
    )


def test_a_declared_task_is_known_by_its_name() -> None:
    assert registry.get(add.name) is add
    assert "shop.full" in registry
    assert add.name in registry.names()
    assert registry.names() == sorted(registry.names())
    with pytest.raises(UnknownTask, match=r"'no\.such'.*import the module"):
        registry.get("no.such")


def generator() -> Iterator[int]:
    yield 1


async def agenerator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("wrong", [5, add, int, generator, agenerator, None])
def test_only_functions_can_be_tasks(wrong: Any) -> None:
    with pytest.raises(ConfigurationError):
        task(queue="q")(wrong)


def test_a_function_without_a_name_needs_one() -> None:
    nameless = functools.partial(pow, 2)
    with pytest.raises(ConfigurationError, match=r"@task\(name=...\)"):
        task(nameless)
    named = task(name="test.power_of_two")(nameless)
    assert named(3) == 8
    with pytest.raises(ConfigurationError, match="255 bytes"):
        task(name="ä" * 128)(generator.__class__.__call__)


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"timeout": "5"}, {"profile": "root"}])
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, InvalidArguments)):
        task(**wrong)


def test_two_functions_of_one_name_clash() -> None:
    tasks = Registry()
    tasks.add(SyncTask[..., None](positional, "app.same", add.options))
    with pytest.raises(ConfigurationError, match=r"two tasks are named 'app\.same'"):
        tasks.add(SyncTask[..., None](named, "app.same", add.options))


def test_a_module_that_is_loaded_again_is_no_clash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from fumehood.common import task\n\n@task\ndef one() -> int:\n    return 1\n"
    (tmp_path / "reloaded_tasks.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    module: ModuleType = importlib.import_module("reloaded_tasks")
    first = registry.get("reloaded_tasks.one")
    importlib.reload(module)
    assert registry.get("reloaded_tasks.one") is not first
    sys.modules.pop("reloaded_tasks")


def test_a_call_is_data() -> None:
    call = add.call(2, b=3)
    assert (call.task, call.args, call.kwargs) == (add, (2,), {"b": 3})
    assert repr(call) == f"{__name__}.add(2, b=3)"
    assert add.call(2) == add.call(2)
    assert add.call(2) != add.call(3)


def positional(a: int, /, b: int = 0, *rest: int) -> None: ...
def named(a: int, *, b: int, c: int = 0) -> None: ...
def many(**options: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "fits"),
    [
        *((positional, (1,), {}, True), (positional, (1, 2, 3, 4), {}, True)),
        *((positional, (), {}, False), (positional, (), {"a": 1}, False)),
        *((positional, (1, 2), {"b": 3}, False), (named, (1,), {"b": 2}, True)),
        *((named, (1,), {}, False), (named, (1, 2), {}, False), (named, (), {}, False)),
        *((named, (1,), {"b": 2, "d": 1}, False), (many, (), {"x": 1}, True)),
        *((many, (1,), {}, False), (many, (), {}, True)),
    ],
)
def test_a_call_must_fit_the_signature(
    function: Any, args: tuple[int, ...], kwargs: dict[str, int], fits: bool
) -> None:
    declared = SyncTask[..., None](function, "test.bound", add.options)
    if fits:
        assert declared.call(*args, **kwargs).args == args
    else:
        with pytest.raises(InvalidArguments, match=r"^test\.bound\("):
            declared.call(*args, **kwargs)


class Recorder:
    """Stands in for a client."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    async def enqueue(self, call: Any, /, **options: Any) -> Any:
        self.calls.append((call, options))
        return "handle"


def test_enqueue_hands_arguments_and_options_apart() -> None:
    import asyncio

    client = Recorder()
    handle = asyncio.run(_await(add.enqueue(client, 2, b=3, timeout=5.0, queue="other")))
    assert handle == "handle"
    call, options = client.calls[0]
    assert call == add.call(2, b=3)
    assert {name: value for name, value in options.items() if value is not None} == {
        "timeout": 5.0,
        "queue": "other",
        "reply": True,
    }


def test_a_parameter_named_like_an_option_is_refused() -> None:
    import asyncio

    with pytest.raises(InvalidArguments, match=r"\(timeout, reply\).*client\.enqueue\(task\.call"):
        asyncio.run(_await(clashing.enqueue(Recorder(), 1.0)))


@pytest.mark.parametrize("good", [1, 0.001, 5.0, 1e9])
def test_a_good_timeout(good: float) -> None:
    seconds = check_timeout(good)
    assert seconds == good
    assert type(seconds) is float


@pytest.mark.parametrize(
    "bad",
    [float("nan"), float("inf"), 0, -1, -0.0, True, "5", None, 10**400, Decimal(5), 1j],
    ids=lambda bad: str(bad)[:10],
)
def test_a_bad_timeout(bad: Any) -> None:
    with pytest.raises(InvalidArguments, match=r"^timeout: ") as caught:
        check_timeout(bad)
    assert caught.value.path == "timeout"


def test_a_timeout_above_the_maximum() -> None:
    assert check_timeout(60, 60.0) == 60.0
    with pytest.raises(InvalidArguments, match=r"61 s is above max_timeout, 60 s"):
        check_timeout(61, 60.0)
