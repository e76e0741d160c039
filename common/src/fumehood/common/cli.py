"""The command ``fumehood``: its root, ``version``, and what other packages add to it.

A package adds its commands through the entry-point group ``fumehood.commands``: each entry point is
a function ``register(app)``. Those modules import what is heavy inside of their commands, so that
``fumehood --help`` stays quick.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata
from typing import Final

import typer

from fumehood.common import console, exit_codes

GROUP: Final = "fumehood.commands"
PARTS: Final = ("common", "broker", "client", "worker", "dashboard")

_ABOUT = "Distributed tasks whose jobs run behind glass: a deadline per message, a process per job."
_ROOT_EPILOG = console.epilog(
    "fumehood demo",
    f"Every option can be set by an environment variable, which the help names. {console.DEBUG}=1 "
    "shows tracebacks.",
    exit_codes.describe(*exit_codes.MEANINGS),
)


def main() -> None:
    """What the script ``fumehood`` runs."""
    build()(prog_name="fumehood")


def build() -> typer.Typer:
    """The root command with everything that is installed."""
    app = typer.Typer(
        help=_ABOUT,
        epilog=_ROOT_EPILOG,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Boxes and colours are for people at a terminal.
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
        context_settings={
            "auto_envvar_prefix": "FUMEHOOD",
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
        },
    )
    app.callback()(_root)
    app.command(epilog=console.epilog("fumehood version --json"))(version)
    _add_installed(app)
    return app


def _root() -> None:
    pass


def _add_installed(app: typer.Typer) -> None:
    """Add each package's commands; one that cannot be imported costs a line, not the others."""
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        try:
            point.load()(app)
        except Exception as cause:  # noqa: BLE001 - whatever another package raises
            why = " ".join(f"{type(cause).__name__}: {cause}".split())
            sys.stderr.write(f"fumehood: the command {point.name!r} is missing: {why}\n")


def version(*, as_json: console.AsJson = False) -> None:
    """Print the versions of all parts."""
    packages = {f"fumehood-{part}": _version(f"fumehood-{part}") for part in PARTS}
    python = f"{platform.python_implementation()} {platform.python_version()}"
    if as_json:
        facts = {"packages": packages, "python": python, "platform": platform.platform()}
        typer.echo(json.dumps(facts))
        return
    lines = {**packages, "Python": python, "platform": platform.platform()}
    for name, found in lines.items():
        typer.echo(f"{name:<20} {found or 'not installed'}")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
