"""``fumehood doctor``: what this host can hold a job to, and what to change."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fumehood.common import console, exit_codes

# What takes long to import is imported by the command itself: the help of all commands reads this.
if TYPE_CHECKING:
    from fumehood.common.settings import Settings
    from fumehood.common.task import Profile
    from fumehood.worker.sandbox.guarantees import Examination, Finding

#: Of the JSON; grows when a field goes or changes its meaning.
VERSION: Final = 1

_EPILOG = console.epilog(
    "fumehood doctor\n\nfumehood doctor --profile untrusted --json\n\n"
    "FUMEHOOD_SANDBOX_DISABLE=cgroup,userns fumehood doctor",
    "Run it as the user, and in the unit or container, that a node is to run in. Mechanisms that "
    "the setting sandbox_disable names are not used.",
    exit_codes.describe(
        exit_codes.OK, exit_codes.FAILURE, exit_codes.USAGE, exit_codes.DEGRADED, exit_codes.ABSENT
    ),
)
_COLOURS = {"enforced": "green", "degraded": "yellow", "absent": "red"}


class Which(StrEnum):
    """Which profiles to examine."""

    BOTH = "both"
    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"


def register(app: typer.Typer) -> None:
    """Add the command ``doctor``."""
    app.command(epilog=_EPILOG)(doctor)


def doctor(
    *,
    profile: Annotated[Which, typer.Option(help="Whose guarantees to look at.")] = Which.BOTH,
    settings: console.SettingsSpec = None,
    as_json: console.AsJson = False,
) -> None:
    """Run jobs that try what they must not be able to do, and tell what held them.

    Needs no broker. Each guarantee is ENFORCED; DEGRADED, with the way around it; or ABSENT.
    """
    with console.one_line_errors("doctor"):
        from fumehood.common.settings import load_settings

        console.see_current_folder()
        # What managers log about a host is what the findings say.
        logging.getLogger("fumehood").addHandler(logging.NullHandler())
        found = asyncio.run(_examine(load_settings(settings), profile))
        if as_json:
            typer.echo(json.dumps(_document(found)))
        else:
            for examination in found:
                _show(examination)
        code = _code(found)
    raise typer.Exit(code)


async def _examine(settings: Settings, which: Which) -> list[Examination]:
    from fumehood.worker.host import prepare_process
    from fumehood.worker.sandbox.doctor import examine

    prepare_process()
    profiles: tuple[Profile, ...] = ("trusted", "untrusted")
    return [await examine(settings, each) for each in profiles if which in (Which.BOTH, each)]


def _code(found: list[Examination]) -> int:
    levels = {examination.worst.value for examination in found}
    return (
        exit_codes.ABSENT
        if "absent" in levels
        else exit_codes.DEGRADED
        if "degraded" in levels
        else exit_codes.OK
    )


def _document(found: list[Examination]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "exit_code": _code(found),
        "host": {"kernel": platform.release(), "machine": platform.machine(), "uid": os.geteuid()},
        "profiles": [examination.to_json() for examination in found],
    }


# --- for people -----------------------------------------------------------------------------


def _show(examination: Examination) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fumehood.worker.sandbox.guarantees import PROMISED

    table = Table(
        "guarantee", "level", "by, and the way around it",
        title=f"{examination.profile} jobs, examined in {examination.seconds:.1f} s",
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    promised = PROMISED[examination.profile]
    for each in examination.findings:
        is_promised = each.guarantee in promised
        # What nobody has promised is no bad news.
        colour = _COLOURS[each.level] if is_promised else "dim"
        name = each.guarantee if is_promised else f"({each.guarantee})"
        table.add_row(
            name,
            Text(each.level.upper(), style=colour),
            Text(_how(each) if is_promised else each.by),
        )
    screen = Console(highlight=False)
    screen.print(table)
    for remedy, names in _remedies(examination).items():
        screen.print(Text(f"{', '.join(names)}: {remedy}"))
    if len(promised) < len(examination.findings):
        screen.print(Text("(in brackets): not promised to jobs of this profile"))
    screen.print()


def _how(finding: Finding) -> str:
    around = f"; around it: {finding.bypass}" if finding.bypass else ""
    return f"{finding.by}{around}" if finding.by else finding.evidence


def _remedies(examination: Examination) -> dict[str, list[str]]:
    """What to do -> the promised guarantees that it would help."""
    from fumehood.worker.sandbox.guarantees import PROMISED

    found: dict[str, list[str]] = {}
    for each in examination.lacks(PROMISED[examination.profile]):
        found.setdefault(each.remedy or each.evidence, []).append(each.guarantee)
    return found
