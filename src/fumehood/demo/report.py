"""The demonstration's findings: boxes and colours at a terminal, plain text elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fumehood.demo.misbehaviour import Finding
from fumehood.demo.survey import Survey

_PLAIN_WIDTH = 150  # characters, where no terminal says how wide it is


def console() -> Console:
    """Where people read."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def show_misbehaviour(out: Console, findings: Sequence[Finding]) -> None:
    """One line for each job."""
    table = _table(out, "Six jobs on one node")
    for name in ("the job", "status", "blame", "reason"):
        table.add_column(name)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("cleaned up")
    for each in findings:
        colour = "green" if each.as_expected else "bold red"
        status = f"[{colour}]{each.status}[/]"
        if each.status != each.expected:
            status += f" (not {each.expected})"
        reason, took = escape(each.reason), f"{each.took * 1000:.1f} ms"
        table.add_row(each.what, status, each.blame, reason, took, each.cleaned_up)
    out.print(table)


def show_canary(out: Console, value: object, same_zygote: bool) -> None:
    """That the node outlived them."""
    same = "the same processes serve" if same_zygote else "its zygote was replaced"
    out.print(f"After them the node still answers: 20 + 22 = {value}; {same}.\n")


def show_survey(out: Console, found: Survey) -> None:
    """The closing summary."""
    table = _table(out, "Every source file of this Python's standard library", header=False)
    table.add_column("what", style="bold")
    table.add_column("how much", overflow="fold")
    for name, text in _lines(found):
        table.add_row(name, escape(text))
    out.print(table)


def _lines(found: Survey) -> list[tuple[str, str]]:
    counts = ", ".join(f"{count} {status}" for status, count in found.outcomes.most_common())
    lines = [
        ("files", f"{found.files} in {found.root}"),
        ("outcomes", counts),
        ("lines", f"{found.lines:,}"),
        ("functions, classes", f"{found.functions:,}, {found.classes:,}"),
        ("most nested", found.most_nested),
        ("most complex", found.most_complex),
        ("slowest file", f"{found.slowest}, {found.slowest_took * 1000:.0f} ms"),
        ("rate", f"{found.jobs_per_second:,.0f} jobs/s, a process each, in {found.took:.1f} s"),
    ]
    return lines + _failures(found)


def _failures(found: Survey) -> list[tuple[str, str]]:
    if not found.failures and not found.with_tests:
        return [("failures", "none: this Python comes without its test files")]
    lines: list[tuple[str, str]] = []
    for reason, count in found.failure_counts.most_common():
        paths = found.failures[reason]
        more = f" and {count - len(paths)} more" if count > len(paths) else ""
        lines.append((f"{count} x {reason}", ", ".join(paths) + more))
    return lines or [("failures", "none")]


def _table(out: Console, title: str, *, header: bool = True) -> Table:
    style = box.ROUNDED if out.is_terminal else None
    return Table(title=title, title_justify="left", box=style, show_header=header)
