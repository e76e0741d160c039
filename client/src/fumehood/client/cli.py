"""``fumehood enqueue``: one job from the command line."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fumehood.client.render import FALLBACKS, as_json
from fumehood.common import console, exit_codes
from fumehood.common.errors import ConfigurationError

# What takes long to import is imported by the command itself: the help of all commands reads this.
if TYPE_CHECKING:
    from fumehood.client.handle import JobHandle
    from fumehood.common.settings import Settings
    from fumehood.common.task import Call

_EPILOG = console.epilog(
    "fumehood enqueue app.tasks.add 2 3 --timeout 5 --wait",
    exit_codes.describe(*exit_codes.MEANINGS),
    FALLBACKS,
)


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for."""

    call: Call[Any]
    options: dict[str, Any]
    wait: bool
    wait_timeout: float | None
    as_object: bool


def register(app: typer.Typer) -> None:
    """Add the command ``enqueue``."""
    app.command(epilog=_EPILOG)(enqueue)


def enqueue(
    task: Annotated[str, typer.Argument(help="The task: module.function, as in app.tasks.add.")],
    args: Annotated[
        list[str] | None,
        typer.Argument(
            help="Its arguments: JSON where that can be read, else text. Before one that starts "
            "with a dash, write --."
        ),
    ] = None,
    *,
    kwargs: Annotated[str, typer.Option(help="Named arguments, a JSON object: '{\"a\": 1}'.")] = "",
    arg: Annotated[
        list[str] | None, typer.Option(help="One named argument, NAME=VALUE; may be repeated.")
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Queue; else the task's.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that the job may run.")] = None,
    expires: Annotated[
        float | None, typer.Option(help="Seconds after which it is not worth starting.")
    ] = None,
    job_id: Annotated[str | None, typer.Option(help="The job's id; else a new one.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the job, print its value.")
    ] = False,
    wait_timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait at most; implies --wait.")
    ] = None,
    broker: console.BrokerUrl = None,
    settings: console.SettingsSpec = None,
    as_object: console.AsJson = False,
) -> None:
    """Enqueue one job; with --wait, print its value.

    Without --wait the job's id is printed.
    """
    logging.basicConfig(level=logging.ERROR)  # the error at the end says what warnings would
    with console.one_line_errors("enqueue"):
        from fumehood.client.lookup import find_task
        from fumehood.common.settings import load_settings

        found = find_task(task)
        call = found.bind(tuple(map(_value, args or ())), _named(kwargs, arg or ()))
        options = {"timeout": timeout, "expires": expires, "queue": queue, "job_id": job_id}
        order = Order(call, options, wait or wait_timeout is not None, wait_timeout, as_object)
        asyncio.run(_carry_out(order, load_settings(settings, broker_url=broker)))


async def _carry_out(order: Order, settings: Settings) -> None:
    from fumehood.client.client import Client

    async with Client(settings=settings) as client:
        handle = await client.enqueue(order.call, reply=order.wait, **order.options)
        if not order.wait:
            facts = {"id": handle.id, "task": handle.task.name, "status": "enqueued"}
            typer.echo(as_json(facts) if order.as_object else handle.id)
            return
        await _report(order, handle)


async def _report(order: Order, handle: JobHandle[Any]) -> None:
    outcome = await handle.outcome(order.wait_timeout)
    value = await handle.result() if outcome.ok else None
    if order.as_object:
        facts: dict[str, Any] = {"id": handle.id, "task": handle.task.name}
        facts |= {"status": outcome.status, "attempt": outcome.attempt}
        if outcome.ok:
            facts["value"] = value
        else:
            facts |= {"error": outcome.describe(), "blame": outcome.blame}
        typer.echo(as_json(facts))
    elif outcome.ok:
        typer.echo(as_json(value))
    if not outcome.ok:
        raise outcome.as_error()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _named(kwargs: str, pairs: Iterable[str]) -> dict[str, Any]:
    named: Any = _value(kwargs) if kwargs else {}
    if not isinstance(named, dict):
        raise ConfigurationError(f"--kwargs must be a JSON object, not {kwargs!r}")
    found = cast("dict[str, Any]", named)
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigurationError(f"--arg must be NAME=VALUE, not {pair!r}")
        found[name] = _value(text)
    return found
