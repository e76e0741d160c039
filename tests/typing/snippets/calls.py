# Every comment below that silences a checker is a claim that it finds fault with the line: mypy's
# strict mode and the settings here report a comment that silences nothing.
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from collections.abc import Coroutine
from typing import Any, assert_type

from fumehood.client import Client, JobHandle
from fumehood.common import Call, Limits, task
from fumehood.common.task import AsyncTask, SyncTask


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task
async def fetch(url: str, *, size: int) -> bytes:
    return url.encode()[:size]


@task(queue="slow", timeout=5.0, limits=Limits(output="1MiB"), progress=True)
def render(page: str) -> list[str]:
    return [page]


@task(name="shop.pay", profile="untrusted")
async def pay(amount: float) -> dict[str, float]:
    return {"paid": amount}


def declared() -> None:
    assert_type(add(2, 3), int)
    assert_type(add.call(2, b=3), Call[int])
    assert_type(fetch.call("u", size=1), Call[bytes])
    assert_type(render("p"), list[str])
    assert_type(render.call("p"), Call[list[str]])
    assert_type(pay.call(1.5), Call[dict[str, float]])
    sync: SyncTask[..., int] = add
    coroutine: AsyncTask[..., bytes] = fetch
    running: Coroutine[Any, Any, bytes] = fetch("u", size=1)
    print(sync, coroutine, running)


async def enqueued(client: Client) -> None:
    assert_type(await client.run(add.call(2, 3)), int)
    assert_type(await client.run(fetch.call("u", size=1), timeout=5.0), bytes)
    assert_type(await client.enqueue(pay.call(1.5)), JobHandle[dict[str, float]])
    assert_type(await (await client.enqueue(render.call("p"))).result(), list[str])
    assert_type(await (await add.enqueue(client, 2, 3, timeout=5.0)).result(), int)
    assert_type(await fetch("u", size=1), bytes)


async def wrong(client: Client) -> None:
    add(2, "x")  # type: ignore[arg-type]
    add()  # type: ignore[call-arg]
    add.call(2, "x")  # type: ignore[arg-type]
    add.call(2, c=3)  # type: ignore[call-arg]
    fetch.call("u")  # type: ignore[call-arg]
    render.call(5)  # type: ignore[arg-type]
    await client.run(add.call(2, "x"))  # type: ignore[arg-type]
    await client.run(add(2, 3))  # type: ignore[arg-type]
    await client.run(add.call(2), timeout="5")  # type: ignore[arg-type]
    text: str = await client.run(add.call(2))  # type: ignore[arg-type]
    await add(2)  # type: ignore[misc]
    task(queue=5)  # type: ignore[call-overload]
    task(profile="root")  # type: ignore[call-overload]
    print(text)
