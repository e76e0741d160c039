"""``fumehood worker``: one node, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from fumehood.common import console, exit_codes
from fumehood.common.errors import ConfigurationError

# What takes long to import is imported by the command itself: the help of all commands reads this.
if TYPE_CHECKING:
    from fumehood.common.settings import Settings
    from fumehood.worker.worker import Worker

log = logging.getLogger("fumehood.worker")

_SIGNALS = (
    "SIGTERM drains: no new jobs, and those that run may finish within drain_grace seconds. A "
    "second SIGTERM, or SIGINT, stops at once and gives running jobs back. Both end with code 0."
)
_EPILOG = console.epilog(
    "fumehood worker app.tasks -q default -c 4 --broker amqp://guest:guest@127.0.0.1:5672/",
    _SIGNALS,
    exit_codes.describe(exit_codes.OK, exit_codes.FAILURE, exit_codes.USAGE, exit_codes.BROKER),
)


class LogLevel(StrEnum):
    """What is worth a line."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def register(app: typer.Typer) -> None:
    """Add the command ``worker``."""
    app.command(epilog=_EPILOG)(worker)


def worker(
    modules: Annotated[
        list[str],
        typer.Argument(
            metavar="MODULE...",
            envvar="FUMEHOOD_MODULES",
            help="Modules that declare tasks, such as app.tasks; looked for in the current folder "
            "too.",
        ),
    ],
    *,
    queue: Annotated[
        list[str] | None,
        typer.Option(
            "--queue",
            "-q",
            envvar="FUMEHOOD_QUEUES",
            help="A queue to serve; may be repeated, or several with commas. [default: default]",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            "-c",
            envvar="FUMEHOOD_CONCURRENCY",
            help="Jobs at a time; else the number of CPUs.",
        ),
    ] = None,
    broker: console.BrokerUrl = None,
    settings: console.SettingsSpec = None,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="FUMEHOOD_LOG_LEVEL", help="The least that is logged.")
    ] = LogLevel.INFO,
    json_logs: Annotated[
        bool, typer.Option("--json-logs", envvar="FUMEHOOD_JSON_LOGS", help="Log JSON lines.")
    ] = False,
    uvloop: Annotated[
        bool,
        typer.Option(
            "--uvloop/--no-uvloop",
            envvar="FUMEHOOD_UVLOOP",
            help="Run the node's event loop on uvloop, which must be installed.",
        ),
    ] = False,
) -> None:
    """Run a node: take jobs, run each in a sandbox.

    The log goes to stderr.
    """
    with console.one_line_errors("worker"):
        from fumehood.common.settings import load_settings
        from fumehood.worker.logs import configure

        console.see_current_folder()
        configure(log_level, as_json=json_logs)
        overrides = {"broker_url": broker, "concurrency": concurrency}
        found = load_settings(settings, **overrides)
        loop_factory = _uvloop() if uvloop else None
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_serve(modules, _names(queue or ("default",)), found))


async def _serve(modules: list[str], queues: list[str], settings: Settings) -> None:
    from fumehood.worker.host import prepare_process
    from fumehood.worker.worker import Worker

    class Announced(Worker):
        """A worker that says what it serves."""

        async def start(self) -> None:
            with _quiet_broker():
                await super().start()
            announce(self, modules, queues)

    prepare_process()
    await Announced(modules=modules, queues=queues, settings=settings).run()
    log.info("the node has stopped")


@contextmanager
def _quiet_broker() -> Generator[None]:
    """Keep back the warnings of each attempt to connect: the error at the end says it all."""
    broker_log = logging.getLogger("fumehood.broker")
    if broker_log.isEnabledFor(logging.DEBUG):
        yield
        return
    broker_log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        broker_log.setLevel(logging.NOTSET)


def announce(worker: Worker, modules: list[str], queues: list[str]) -> None:
    """Log what a node serves, and from where."""
    from fumehood.common.settings import hide_password

    settings, runner = worker.settings, worker.node.runner
    facts = {
        "modules": modules,
        "tasks": sorted(runner.tasks),
        "queues": queues,
        "concurrency": settings.concurrency,
        "broker": hide_password(settings.broker_url),
        "node": worker.node.name,
        "sandbox": settings.sandbox_ctx if settings.sandbox_enabled else "off",
    }
    log.info("serving", extra=facts)


def _names(queues: Iterable[str]) -> list[str]:
    names = [name.strip() for text in queues for name in text.split(",")]
    return [name for name in dict.fromkeys(names) if name]


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        raise ConfigurationError(
            "uvloop is not installed: pip install 'fumehood-worker[uvloop]'"
        ) from None
    return uvloop.new_event_loop
