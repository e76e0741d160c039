"""``fumehood demo``: see for yourself, without a broker to install."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fumehood.common import console, exit_codes

# What takes long to import is imported by the command itself: the help of all commands reads this.
if TYPE_CHECKING:
    from fumehood.client import Client
    from fumehood.demo.misbehaviour import Finding
    from fumehood.demo.survey import Survey
    from fumehood.worker import Worker

_URL = "memory://fumehood-demo"
_EPILOG = console.epilog(
    "fumehood demo --limit 200",
    exit_codes.describe(
        exit_codes.OK, exit_codes.FAILURE, exit_codes.USAGE, exit_codes.INTERRUPTED
    ),
)


def register(app: typer.Typer) -> None:
    """Add the command ``demo``."""
    app.command(epilog=_EPILOG)(demo)


def demo(
    *,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, envvar="FUMEHOOD_DEMO_LIMIT", help="Files to measure at most; else all."
        ),
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Run jobs that misbehave, and real work.

    In this process: a node and a client over an in-memory broker. Jobs run in sandboxes as they do
    on any node.
    """
    with console.one_line_errors("demo"):
        logging.basicConfig(level=logging.ERROR)
        if not asyncio.run(_demonstrate(limit, as_json=as_json)):
            raise typer.Exit(exit_codes.FAILURE)


async def _demonstrate(limit: int | None, *, as_json: bool) -> bool:
    """Whether everything went as it should."""
    from fumehood.demo import misbehaviour, report, tasks
    from fumehood.demo.survey import source_files, survey

    root, files = source_files(limit)
    out = report.console()
    async with _house() as (client, worker):
        before = _zygotes(worker)
        findings = await misbehaviour.run_cases(client)
        canary = await client.run(tasks.fine.call(20, 22), timeout=10.0)
        same = _zygotes(worker) == before
        if not as_json:
            report.show_misbehaviour(out, findings)
            report.show_canary(out, canary, same)
        with _progress(len(files), hidden=as_json) as advance:
            found = await survey(client, root, files, advance)
    if as_json:
        typer.echo(json.dumps(_document(findings, canary, same, found)))
    else:
        report.show_survey(out, found)
    return canary == 42 and all(finding.as_expected for finding in findings)


@asynccontextmanager
async def _house() -> AsyncGenerator[tuple[Client, Worker]]:
    """A client and a node, from whose settings nothing of the surroundings is taken but sizes."""
    from fumehood.client import Client
    from fumehood.common.settings import load_settings
    from fumehood.worker import Worker

    settings = load_settings(
        "fumehood.common.settings:Settings",
        broker_url=_URL,
        sandbox_enabled=True,
        sandbox_fallback=False,
    )
    worker = Worker(modules=["fumehood.demo.tasks"], settings=settings)
    await worker.start()
    try:
        async with Client(settings=settings) as client:
            yield client, worker
    finally:
        await worker.stop()


def _zygotes(worker: Worker) -> list[int]:
    found: list[int] = getattr(worker.node.runner, "zygote_pids", [])
    return found


def _document(
    findings: list[Finding], canary: int, same_zygote: bool, found: Survey
) -> dict[str, Any]:
    jobs = [asdict(finding) | {"as_expected": finding.as_expected} for finding in findings]
    return {
        "jobs": jobs,
        "canary": {"value": canary, "same_zygote": same_zygote},
        "survey": found.as_dict(),
    }


@contextmanager
def _progress(total: int, *, hidden: bool) -> Generator[Callable[[], None]]:
    """A bar on stderr, where somebody sees it."""
    if hidden or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("measuring", total=total)
        yield lambda: progress.advance(bar)
