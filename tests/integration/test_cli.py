"""The command line as a user meets it: whole processes, a real node, a real broker."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node_process import FUMEHOOD, environment, run_fumehood, worker
from support.rabbitmq import PrivateNode

TASKS = """
import os, time
from fumehood.common import task

@task
def add(a, b):
    return a + b

@task
def fail():
    raise LookupError("not here")

@task
def nap(seconds):
    time.sleep(seconds)
"""
REFUSING = "amqp://u:secret@127.0.0.1:1/"
QUICK = {"FUMEHOOD_CONNECT_TIMEOUT": "0.5"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "app").mkdir()
    (folder / "app/tasks.py").write_text(TASKS)
    (folder / "app/empty.py").write_text("")
    (folder / "app/broken.py").write_text("1 / 0")
    (folder / "app/settings.py").write_text(
        "from fumehood.common import Settings as Base\n"
        "class Settings(Base):\n    concurrency: int = 3\n"
    )
    return folder


@pytest.fixture(scope="module")
def node(rabbit: PrivateNode, project: Path) -> Iterator[str]:
    """A worker on a queue of its own; the URL of its broker."""
    with worker("app.tasks", "-q", "cli", "-c", "2", "--broker", rabbit.url, cwd=project):
        yield rabbit.url


def enqueue(project: Path, url: str, *arguments: str) -> tuple[int, str, str]:
    env = {"FUMEHOOD_BROKER_URL": url, "FUMEHOOD_ENQUEUE_QUEUE": "cli"}
    done = run_fumehood("enqueue", *arguments, cwd=project, env=env)
    return done.returncode, done.stdout, done.stderr


def one_line(stderr: str, command: str) -> bool:
    return stderr.count("\n") == 1 and stderr.startswith(f"fumehood {command}: ")


def test_version_as_json(tmp_path: Path) -> None:
    done = run_fumehood("version", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(json.loads(done.stdout)) == {"packages", "python", "platform"}


@pytest.mark.rabbitmq
def test_a_job_is_enqueued_and_awaited(node: str, project: Path) -> None:
    found = enqueue(project, node, "app.tasks.add", "2", "3", "--timeout", "5", "--wait")
    assert found == (0, "5\n", "")


@pytest.mark.rabbitmq
def test_what_becomes_of_a_job_is_the_exit_code(node: str, project: Path) -> None:
    code, out, err = enqueue(project, node, "app.tasks.fail", "--wait", "--json")
    assert (code, one_line(err, "enqueue")) == (4, True)
    assert json.loads(out)["status"] == "failed"
    assert "LookupError: not here" in err
    code, _, err = enqueue(project, node, "app.tasks.nap", "60", "--timeout", "0.2", "--wait")
    assert (code, "killed at its timeout of 0.2 s" in err) == (4, True)
    code, _, err = enqueue(
        project, node, "app.tasks.nap", "5", "--timeout", "1", "--wait-timeout", "0.2"
    )
    assert (code, one_line(err, "enqueue")) == (5, True)


@pytest.mark.rabbitmq
def test_a_queue_that_nobody_serves(node: str, project: Path) -> None:
    code, out, err = enqueue(project, node, "app.tasks.add", "2", "3", "--queue", "nobody")
    assert (code, out, one_line(err, "enqueue")) == (3, "", True)


@pytest.mark.rabbitmq
def test_a_worker_says_what_it_serves_and_drains(rabbit: PrivateNode, project: Path) -> None:
    arguments = ("app.tasks", "-q", "a,b", "-q", "c")
    env = {"FUMEHOOD_BROKER_URL": rabbit.url, "FUMEHOOD_SETTINGS": "app.settings:Settings"}
    with worker(*arguments, cwd=project, env=env) as running:
        line = next(line for line in running.log.splitlines() if "serving" in line)
        for fact in (
            "modules=app.tasks",
            "tasks=app.tasks.add,app.tasks.fail,app.tasks.nap",
            "queues=a,b,c",
            "concurrency=3",
            "broker=amqp://guest:***@127.0.0.1",
            "sandbox=fork",
        ):
            assert fact in line
        assert "guest:guest" not in running.log
        assert running.stop() == 0
        assert "the node has stopped" in running.log


@pytest.mark.rabbitmq
def test_a_running_job_is_finished_by_sigterm_and_given_back_by_sigint(
    rabbit: PrivateNode, project: Path
) -> None:
    env = {"FUMEHOOD_BROKER_URL": rabbit.url}
    with worker("app.tasks", "-q", "drained", cwd=project, env=env) as running:
        done = run_fumehood(
            *("enqueue", "app.tasks.nap", "1", "--timeout", "20", "--queue", "drained"),
            cwd=project,
            env=env,
        )
        assert done.returncode == 0
        time.sleep(0.5)
        assert running.stop() == 0
        assert "draining" in running.log
    with worker("app.tasks", "-q", "drained", cwd=project, env=env) as running:
        run_fumehood(
            *("enqueue", "app.tasks.nap", "50", "--timeout", "60", "--queue", "drained"),
            cwd=project,
            env=env,
        )
        time.sleep(0.5)
        started = time.monotonic()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(20) == 0
        assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("nowhere.tasks", "--broker", "memory://"), 2, "nowhere"),
        (("app.broken", "--broker", "memory://"), 2, "ZeroDivisionError: division by zero"),
        (("app.empty", "--broker", "memory://"), 2, "no task is declared in app.empty"),
        (("app.tasks", "--broker", "gopher://"), 2, "gopher"),
        (("app.tasks", "--settings", "nowhere:Settings"), 2, "nowhere"),
        (("app.tasks", "--broker", "memory://", "-c", "0"), 2, "concurrency"),
        (("app.tasks", "--broker", REFUSING), 3, "connection refused"),
    ],
    ids=str,
)
def test_a_worker_that_cannot_start_says_so_in_one_line(
    project: Path, arguments: tuple[str, ...], code: int, why: str
) -> None:
    done = run_fumehood("worker", *arguments, "--log-level", "warning", cwd=project, env=QUICK)
    assert done.returncode == code, done.stderr
    assert why in done.stderr
    assert one_line(done.stderr, "worker"), done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("nowhere.tasks.add",), 2, "no module named 'nowhere.tasks'"),
        (("app.tasks.nothing",), 2, "its tasks are app.tasks.add"),
        (("app.tasks.add", "1"), 2, "missing a required argument"),
        (("app.tasks.add", "1", "2", "--broker", REFUSING), 3, "connection refused"),
    ],
    ids=str,
)
def test_an_enqueue_that_cannot_work_says_so_in_one_line(
    project: Path, arguments: tuple[str, ...], code: int, why: str
) -> None:
    done = run_fumehood("enqueue", *arguments, cwd=project, env=QUICK)
    assert (done.returncode, done.stdout) == (code, "")
    assert why in done.stderr
    assert one_line(done.stderr, "enqueue"), done.stderr
    assert "secret" not in done.stderr


def test_a_worker_on_uvloop(project: Path) -> None:
    pytest.importorskip("uvloop")
    with worker("app.tasks", "--uvloop", "--broker", "memory://", cwd=project) as running:
        assert running.stop() == 0


def test_a_worker_is_told_to_stop_while_it_connects(project: Path) -> None:
    arguments = ("app.tasks", "--broker", REFUSING, "--log-level", "debug")
    with worker(*arguments, cwd=project, ready="no broker host usable") as running:
        started = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - started < 5


def children_left(marker: str) -> list[str]:
    """Command lines of processes that have this in their environment."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_the_demonstration_shows_what_it_claims(tmp_path: Path) -> None:
    marker = f"TERM=demo-{os.getpid()}"  # an allowed variable: sandboxes inherit it
    env = {"TERM": marker.partition("=")[2], "HOME": ""}
    done = run_fumehood("demo", "--limit", "40", "--json", cwd=tmp_path, env=env, timeout=110)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [job["status"] for job in found["jobs"]] == [
        "succeeded",
        "failed",
        "timed_out",
        "crashed",
        "exited",
        "timed_out",
    ]
    assert all(job["as_expected"] for job in found["jobs"])
    assert [job["grandchild_dead"] for job in found["jobs"]] == [None] * 5 + [True]
    for job in found["jobs"]:
        if job["status"] == "timed_out":
            assert job["timeout"] <= job["took"] < job["timeout"] + 1.0
    assert found["canary"] == {"value": 42, "same_zygote": True}
    assert found["survey"]["files"] == 40
    assert sum(found["survey"]["outcomes"].values()) == 40
    assert found["survey"]["lines"] > 1000
    assert children_left(marker) == []


def test_the_demonstration_for_people_needs_no_terminal(tmp_path: Path) -> None:
    done = run_fumehood("demo", "--limit", "5", cwd=tmp_path, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "20 + 22 = 42" in done.stdout
    assert "jobs/s" in done.stdout
    assert done.stdout.isascii(), "boxes are for terminals"


def test_the_demonstration_draws_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [*FUMEHOOD, "demo", "--limit", "5"],
            cwd=tmp_path,
            env=environment({"TERM": "xterm", "PYTHONUNBUFFERED": "1"}),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        shown = bytearray()
        while True:
            try:
                chunk = screen.read(65536)
            except OSError:
                break
            if not chunk:
                break
            shown += chunk
    assert process.wait(60) == 0
    assert b"\x1b[" in shown
    assert "╭".encode() in shown
