"""``fumehood`` itself: help, versions, and commands that other packages add."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from support.node_process import run_fumehood
from typer.testing import CliRunner, Result

from fumehood.common import cli

RUN = CliRunner()


def fumehood(*arguments: str) -> Result:
    return RUN.invoke(cli.build(), list(arguments), prog_name="fumehood")


def commands() -> list[str]:
    names = {point.name for point in metadata.entry_points(group=cli.GROUP)}
    assert {"enqueue", "worker", "demo"} <= names
    return ["version", *sorted(names)]


def test_the_help_names_every_command() -> None:
    text = fumehood("--help").stdout
    for name in commands():
        assert name in text
    assert "130 interrupted" in " ".join(text.split())


@pytest.mark.parametrize("command", ["version", "enqueue", "worker", "demo"])
def test_every_help_has_env_names_and_ends_with_an_example(command: str) -> None:
    text = fumehood(command, "--help").stdout
    flat = " ".join(text.split())
    example = flat.rpartition("Example: ")[2]
    assert example.startswith(f"fumehood {command}")
    options = text.partition("Options:")[2].partition("\n\n")[0]
    own = [part for part in options.split("\n  -") if part.strip()]
    assert len(own) > 1
    for option in own:
        assert "FUMEHOOD_" in option.replace("\n", "") or "--help" in option, option


def test_versions_are_printed_for_people_and_for_machines() -> None:
    facts = json.loads(fumehood("version", "--json").stdout)
    assert facts["packages"] == {f"fumehood-{part}": "0.1.0" for part in cli.PARTS}
    assert facts["python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert facts["platform"]
    lines = fumehood("version").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*facts["packages"], "Python", "platform"]


def test_an_environment_variable_stands_for_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUMEHOOD_JSON", "1")
    assert json.loads(fumehood("version").stdout)


def test_a_command_that_cannot_be_imported_costs_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = metadata.EntryPoint("boom", "nowhere.to_be:found", cli.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [broken])
    result = fumehood("version")
    assert result.exit_code == 0
    assert "fumehood-common" in result.stdout
    assert capsys.readouterr().err == (
        "fumehood: the command 'boom' is missing: ModuleNotFoundError: No module named 'nowhere'\n"
    )


def test_the_help_is_quick_to_import(tmp_path: Path) -> None:
    """What takes long to import is imported by the command that needs it."""
    (tmp_path / "probe.py").write_text(
        "import sys\n"
        "from fumehood.client.cli import register as one\n"
        "from fumehood.demo.cli import register as two\n"
        "from fumehood.worker.cli import register as three\n"
        "from fumehood.common.cli import build\n"
        "heavy = {'aio_pika', 'aiormq', 'pydantic_settings', 'opentelemetry', 'rich.progress'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "probe.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_wrong_option_is_no_traceback(tmp_path: Path) -> None:
    done = run_fumehood("worker", "--nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--nonsense" in done.stderr
