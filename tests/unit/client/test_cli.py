"""``fumehood enqueue``, up to the broker: what it reads, finds, prints and exits with."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import typer
from support.producer import StubBroker, ended, succeeded
from typer.testing import CliRunner, Result

from fumehood.client import cli
from fumehood.client.render import as_json
from fumehood.common import BrokerUnavailable, QueueFull, Status, UnknownQueue
from fumehood.common.arguments import decode_arguments
from fumehood.common.message import Message

TASKS = """
from fumehood.common import task

@task
def add(a, b=0):
    return a + b

@task(name="billing.charge")
def charge():
    pass

def plain():
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with task modules; one for all tests, since a process imports a module once."""
    folder = tmp_path_factory.mktemp("project")
    package = folder / "shop"
    package.mkdir()
    (package / "tasks.py").write_text(TASKS)
    (package / "broken.py").write_text("1 / 0")
    (package / "needy.py").write_text("import nowhere_to_be_found")
    (package / "leaver.py").write_text("raise SystemExit(7)")
    (package / "empty.py").write_text("")
    return folder


@pytest.fixture
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in that folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> StubBroker:
    """What every client of the command line talks to."""
    stub = StubBroker()
    monkeypatch.setattr("fumehood.client.client.connect", lambda *_, **__: stub)
    return stub


def fumehood(*arguments: str) -> Result:
    app = typer.Typer()
    app.command("other")(lambda: None)
    cli.register(app)
    return CliRunner().invoke(app, ["enqueue", *arguments])


def answering(broker: StubBroker, value: Any) -> None:
    async def answer(message: Message) -> None:
        broker.on_reply(succeeded(message.correlation_id, value))

    broker.publish = answer


@pytest.mark.usefixtures("project")
def test_without_waiting_it_prints_the_id(broker: StubBroker) -> None:
    result = fumehood("shop.tasks.add", "2", "3", "--timeout", "5", "--queue", "q")
    assert (result.exit_code, result.stderr) == (0, "")
    job = broker.envelopes[0]
    assert result.stdout == f"{job.job_id}\n"
    assert (job.task, job.timeout, job.reply_to) == ("shop.tasks.add", 5.0, "")
    assert broker.jobs[0][0] == "q"


@pytest.mark.usefixtures("project")
def test_arguments_are_json_where_they_can_be_read(broker: StubBroker) -> None:
    fumehood("shop.tasks.add", "--kwargs", '{"b": [1, null]}', "--", "-2")
    fumehood("shop.tasks.add", "plain text", "--arg", "b=x=y")
    assert [decode_arguments(job.arguments) for job in broker.envelopes] == [
        ([-2], {"b": [1, None]}),
        (["plain text"], {"b": "x=y"}),
    ]


@pytest.mark.usefixtures("project")
def test_a_task_with_a_name_of_its_own_is_found_where_it_stands(broker: StubBroker) -> None:
    assert fumehood("shop.tasks.charge").exit_code == 0
    assert broker.envelopes[0].task == "billing.charge"


@pytest.mark.usefixtures("project")
def test_waiting_prints_the_value(broker: StubBroker) -> None:
    answering(broker, {"when": datetime(2030, 1, 1, tzinfo=UTC)})
    assert fumehood("shop.tasks.add", "1", "--wait").stdout == (
        '{"when": "2030-01-01T00:00:00+00:00"}\n'
    )
    result = fumehood("shop.tasks.add", "1", "--wait-timeout", "5", "--json", "--job-id", "j")
    facts = json.loads(result.stdout)
    assert (facts["id"], facts["status"], facts["attempt"]) == ("j", "succeeded", 1)
    assert facts["value"] == {"when": "2030-01-01T00:00:00+00:00"}
    facts = json.loads(fumehood("shop.tasks.add", "1", "--json", "--job-id", "k").stdout)
    assert facts == {"id": "k", "task": "shop.tasks.add", "status": "enqueued"}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("status", [s for s in Status if s is not Status.SUCCEEDED])
def test_a_job_that_did_not_succeed_is_told_by_the_exit_code(
    status: Status, broker: StubBroker
) -> None:
    async def answer(message: Message) -> None:
        broker.on_reply(ended(message.correlation_id, status, reason="it\nbroke"))

    broker.publish = answer
    result = fumehood("shop.tasks.add", "1", "--wait", "--json", "--job-id", "j")
    assert (result.exit_code, result.stderr) == (4, "fumehood enqueue: t [j]: it broke\n")
    facts = json.loads(result.stdout)
    assert (facts["status"], facts["error"]) == (status, "t [j]: it\nbroke")


@pytest.mark.usefixtures("project")
def test_impatience_has_a_code_of_its_own(broker: StubBroker) -> None:
    result = fumehood("shop.tasks.add", "1", "--wait-timeout", "0.01")
    assert result.exit_code == 5
    assert "the job goes on" in result.stderr
    assert broker.controls == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("error", [BrokerUnavailable, QueueFull, UnknownQueue])
def test_a_broker_that_refuses(error: type[Exception], broker: StubBroker) -> None:
    async def refuse(_: Message) -> None:
        raise error("no such thing")

    broker.publish = refuse
    result = fumehood("shop.tasks.add", "1")
    assert (result.exit_code, result.stderr) == (3, "fumehood enqueue: no such thing\n")


@pytest.mark.usefixtures("project", "broker")
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["shop.tasks.sub"], "its tasks are shop.tasks.add"),
        (["shop.tasks.plain"], "'shop.tasks.plain' is not a task"),
        (["shop.empty.add"], "it declares no task"),
        (["shop.nothing.add"], "'shop.nothing.add' is not a task"),
        (["nowhere.tasks.add"], "no module named 'nowhere.tasks'"),
        (["add"], "write module.function"),
        (["..add"], "write module.function"),
        (["shop.broken.add"], "ZeroDivisionError: division by zero"),
        (["shop.needy.add"], "nowhere_to_be_found"),
        (["shop.leaver.add"], "SystemExit: 7"),
        (["shop.tasks.add"], "missing a required argument: 'a'"),
        (["shop.tasks.add", "1", "--timeout", "-1"], "above 0"),
        (["shop.tasks.add", "1", "--kwargs", "[1]"], "--kwargs must be a JSON object"),
        (["shop.tasks.add", "1", "--arg", "c=1"], "unexpected keyword argument 'c'"),
        (["shop.tasks.add", "1", "--arg", "b"], "--arg must be NAME=VALUE"),
        (["shop.tasks.add", "1", "--settings", "nowhere:Settings"], "nowhere"),
    ],
    ids=lambda found: "" if isinstance(found, str) else " ".join(found),
)
def test_wrong_usage_is_one_line(arguments: list[str], why: str) -> None:
    result = fumehood(*arguments)
    assert result.exit_code == 2
    assert why in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.usefixtures("project")
def test_a_refused_connection_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUMEHOOD_CONNECT_TIMEOUT", "0.3")
    result = fumehood("shop.tasks.add", "1", "--broker", "amqp://u:secret@127.0.0.1:1/")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert "secret" not in result.stderr
    result = fumehood("shop.tasks.add", "1", "--broker", "gopher://")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_help_ends_with_an_example() -> None:
    text = " ".join(fumehood("--help").stdout.split())
    assert text.endswith("Example: fumehood enqueue app.tasks.add 2 3 --timeout 5 --wait")
    assert "Exit codes: 0 done; 1" in text


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: Any


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, 2.5, None, True]}, '{"a": [1, 2.5, null, true]}'),
        ((1, {2, 1}), "[1, [1, 2]]"),
        (float("nan"), '"nan"'),
        (b"\x00\xff", '"AP8="'),
        (timedelta(seconds=1.5), "1.5"),
        (Decimal("1.50"), '"1.50"'),
        (UUID(int=0), '"00000000-0000-0000-0000-000000000000"'),
        (Colour.RED, '"red"'),
        (Point(1, Point(2, 3j)), '{"x": 1, "y": {"x": 2, "y": "3j"}}'),
        ({1: 2, (1, 2): 3, None: 4}, '{"1": 2, "[1, 2]": 3, "null": 4}'),
        ("größe", '"größe"'),
        (1 << 100, str(1 << 100)),
    ],
    ids=str,
)
def test_every_value_can_be_shown_as_json(value: Any, text: str) -> None:
    assert as_json(value) == text
    json.loads(text)
