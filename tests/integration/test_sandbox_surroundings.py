"""What a task prints, what it sees, and what it cannot leave to the next."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sandbox_tasks as tasks
from support.sandboxes import MODES, WAYS, Bench, make_sandbox

from fumehood.common import Limits, Status

SECRETS = {
    "FUMEHOOD_BROKER_URL": "amqp://user:secret@broker/",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "APP_MODE": "test",
    "APP_TOKEN_A": "a",
    "LC_TEST": "C",
}


@pytest.fixture(scope="module", params=WAYS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    disable, ctx = request.param
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        sandbox = make_sandbox(disable, sandbox_ctx=ctx, sandbox_env=("APP_TOKEN_*", "FUMEHOOD_*"))
        with Bench(sandbox) as bench:
            yield bench


# --- output ---------------------------------------------------------------------------------


def test_output_is_captured(bench: Bench) -> None:
    outcome = bench.run(tasks.say.call("out\n", "err\n"))
    assert (outcome.stdout, outcome.stderr) == (b"out\n", b"err\n")
    outcome = bench.run(tasks.say.call("no newline", "none \u20ac either"))
    assert (outcome.stdout, outcome.stderr) == (b"no newline", "none \u20ac either".encode())
    assert outcome.output_dropped == 0


def test_output_is_capped_and_counted(bench: Bench) -> None:
    outcome = bench.run(tasks.say.call("x" * 1000, "y" * 10), limits=Limits(output=100))
    assert (outcome.stdout, outcome.stderr) == (b"x" * 100, b"y" * 10)
    assert outcome.output_dropped == 900


def test_a_flood_of_output(bench: Bench) -> None:
    size = 200 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = bench.run(tasks.flood.call(size), timeout=60)
    assert outcome.value == "poured"
    assert len(outcome.stdout) == 1 << 20
    assert outcome.output_dropped == size - (1 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 << 10


@pytest.mark.parametrize(
    ("how", "stdout", "stderr"),
    [
        ("binary", bytes(range(256)), b""),
        ("closed", b"before", b"after"),
        ("replaced", b"first", b""),
        ("none", b"first", b""),
        ("c", b"from C", b""),
    ],
)
def test_odd_output(bench: Bench, how: str, stdout: bytes, stderr: bytes) -> None:
    outcome = bench.run(tasks.say_odd.call(how))
    assert outcome.ok
    assert (outcome.stdout, outcome.stderr) == (stdout, stderr)


def test_output_before_a_kill(bench: Bench) -> None:
    outcome = bench.run(tasks.say_odd.call("killed"), timeout=0.2)
    assert outcome.status is Status.TIMED_OUT
    assert (outcome.stdout, outcome.stderr) == (b"before the kill\n", b"bare")


# --- surroundings ---------------------------------------------------------------------------


def test_the_environment_is_an_allow_list(bench: Bench) -> None:
    seen = bench.run(tasks.environment.call()).value
    assert seen["APP_TOKEN_A"] == "a"
    assert seen["LC_TEST"] == "C"
    assert "PATH" in seen
    assert "APP_MODE" not in seen
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert not [name for name in seen if name.startswith("FUMEHOOD_")]
    assert not [name for name, value in seen.items() if "secret" in value]


def test_a_census(bench: Bench) -> None:
    seen = bench.run(tasks.census.call()).value
    fds = dict(seen["fds"])
    listing = [fd for fd, target in fds.items() if target.startswith("/proc/")]
    for fd in listing:
        del fds[fd]
    assert sorted(fds) == [0, 1, 2, 3, 4, 5]
    assert fds[0] == "/dev/null"
    assert [fds[fd].split(":")[0] for fd in (1, 2, 3, 5)] == ["pipe", "pipe", "socket", "pipe"]
    assert "memfd" in fds[4]
    umask = os.umask(0o22)
    os.umask(umask)
    assert (seen["cwd"], seen["umask"]) == (str(Path.cwd()), umask)
    assert seen["blocked"] == []
    odd = {n: h for n, h in seen["handlers"].items() if h not in {"0", "Handlers.SIG_DFL"}}
    assert set(odd) == {int(signal.SIGINT), int(signal.SIGPIPE)}
    assert seen["group"]
    assert not seen["terminal"]
    assert seen["threads"] == 1


def test_nothing_is_left_for_the_next(bench: Bench) -> None:
    before = bench.run(tasks.census.call()).value
    assert bench.run(tasks.spoil.call()).ok
    after = bench.run(tasks.census.call()).value
    assert (before["cwd"], before["umask"]) == (after["cwd"], after["umask"])
    assert before["handlers"] == after["handlers"]
    assert "SPOILT" not in bench.run(tasks.environment.call()).value


def test_chance_differs(bench: Bench) -> None:
    one, two = (bench.run(tasks.dice.call()).value for _ in range(2))
    assert not set(one) & set(two)


@pytest.mark.parametrize("disable", MODES)
def test_no_terminal_and_no_stdin(disable: tuple[str, ...]) -> None:
    with Bench(make_sandbox(disable)) as bench:
        assert bench.run(tasks.census.call()).value["fds"][0] == "/dev/null"
