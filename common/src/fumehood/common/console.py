"""What all commands share: common options, how an error is told, how the help ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fumehood.common import errors, exit_codes

DEBUG = "FUMEHOOD_DEBUG"

#: The option of every command that prints something.
AsJson = Annotated[
    bool, typer.Option("--json", envvar="FUMEHOOD_JSON", help="Print one JSON object.")
]
#: The options of every command that speaks to a broker.
BrokerUrl = Annotated[
    str | None,
    typer.Option("--broker", metavar="URL", envvar="FUMEHOOD_BROKER_URL", help="The broker."),
]
SettingsSpec = Annotated[
    str | None,
    typer.Option(
        "--settings",
        metavar="MODULE:CLASS",
        envvar="FUMEHOOD_SETTINGS",
        help="Settings of your own, a subclass of fumehood.common.Settings.",
    ),
]

# The first that fits decides: a JobTimedOut is a TimeoutError too.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.JobError, exit_codes.JOB),
    (errors.InvalidArguments, exit_codes.USAGE),
    (errors.PayloadTooLarge, exit_codes.USAGE),
    (errors.EnqueueError, exit_codes.BROKER),
    (errors.ClientClosed, exit_codes.BROKER),
    (errors.FumehoodError, exit_codes.USAGE),
    (TimeoutError, exit_codes.WAIT),
    (KeyboardInterrupt, exit_codes.INTERRUPTED),
)


def code_of(error: BaseException) -> int:
    """The exit code that fits an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), exit_codes.FAILURE)


@contextmanager
def one_line_errors(command: str) -> Generator[None]:
    """Run a command's body: an error becomes one line on stderr and the exit code that fits it.

    With ``FUMEHOOD_DEBUG=1`` in the environment the traceback comes first.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise  # typer's own ways out, and that of a reader that has left
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - told, never swallowed
        fail(command, error)


def fail(command: str, error: BaseException) -> NoReturn:
    """Tell an error in one line on stderr, and leave with its exit code."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    code = code_of(error)
    sys.stderr.write(f"fumehood {command}: {_line(error, code)}\n")
    raise typer.Exit(code) from None


def _line(error: BaseException, code: int) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = " ".join(str(error).split())
    if code != exit_codes.FAILURE:
        return text or type(error).__name__
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"unexpected {what} ({DEBUG}=1 shows where)"


def epilog(example: str, *parts: str) -> str:
    """The end of a command's help: paragraphs, and an example as the last."""
    return "\n\n".join((*parts, f"Example: {example}"))


def see_current_folder() -> None:
    """Let modules be imported from the current folder, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
