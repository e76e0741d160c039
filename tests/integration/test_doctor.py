"""The doctor on this host: as root and as nobody, whole and with mechanisms masked.

What it claims is compared with what other jobs can really do: a doctor that lies is a failing test.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hostile import ordinary
from hostile.scene import NOBODY, Scene
from support import jobs, sandbox_tasks
from support.aio import async_test
from support.node_process import run_fumehood
from support.sandboxes import make_sandbox, make_settings

from fumehood.broker.memory import MemoryBroker
from fumehood.broker.options import BrokerOptions
from fumehood.client import Client
from fumehood.common import ConfigurationError
from fumehood.common.errors import SandboxUnavailable
from fumehood.common.task import Profile
from fumehood.worker import Sandbox, Worker
from fumehood.worker.sandbox import doctor, protection
from fumehood.worker.sandbox.guarantees import DESCRIPTIONS, PROMISED, Examination, Level

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
E, D, A = Level.ENFORCED, Level.DEGRADED, Level.ABSENT

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="another user has other findings")
#: A host without these has other findings, which no test here knows.
whole_host = pytest.mark.skipif(
    bool(
        Scene("untrusted").lost & {"cgroup", "cgroup-memory", "cgroup-pids", "landlock", "seccomp"}
    ),
    reason="this host lacks cgroups, Landlock or seccomp",
)
as_nobody = pytest.mark.skipif(not ordinary.can_become(), reason="no other user can be had here")


@cache
def examined(profile: Profile, *disable: str) -> Examination:
    return asyncio.run(doctor.examine(make_settings(disable), profile))


def levels(examination: Examination) -> dict[str, Level]:
    return {each.guarantee: each.level for each in examination.findings}


def may_limit_others() -> bool:
    """Whether this process has CAP_SYS_RESOURCE, without which another user's limits stay."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    return bool(int(held, 16) & 1 << 24)


# --- findings -------------------------------------------------------------------------------


@root_only
@whole_host
def test_as_root_all_that_is_promised_is_enforced() -> None:
    for profile in ("untrusted", "trusted"):
        found = examined(profile)
        assert [each.guarantee for each in found.findings] == list(DESCRIPTIONS)
        lacking = found.lacks(PROMISED[profile])
        assert not lacking, [str(each) for each in lacking]
        for each in found.findings:
            assert each.evidence
            assert bool(each.by) is (each.level is not A)
            assert bool(each.bypass) is (each.level is D)
            assert bool(each.remedy) is (each.level is not E)


@root_only
@whole_host
def test_sandboxes_with_an_interpreter_of_their_own_hold_no_less() -> None:
    settings = make_settings(sandbox_ctx="spawn")
    found = asyncio.run(doctor.examine(settings, "untrusted"))
    assert [str(each) for each in found.findings if each.level is not E] == []


@root_only
@whole_host
def test_what_trusted_jobs_are_not_promised_is_said_too() -> None:
    expected = dict.fromkeys(DESCRIPTIONS, A) | dict.fromkeys(PROMISED["trusted"], E)
    # Landlock's scope for signals spares the node, and the kernel protects what has more rights.
    expected |= {"no-signals": D}
    found = levels(examined("trusted"))
    assert found.pop("private-memory") is not E  # by the rights of whoever runs this
    expected.pop("private-memory")
    assert found == expected


#: By mask: what changes of an untrusted profile, and what enforces it then.
CHANGES: dict[str, dict[str, tuple[Level, str]]] = {
    "landlock": {},
    "cgroup": {
        "kill": (D, "child subreapers and a walk through /proc"),
        "memory": (D, "RLIMIT_AS, and a look at its memory every 50 ms"),
        "oom-attribution": (D, "RLIMIT_AS, and a look at its memory every 50 ms"),
        "processes": (E, "RLIMIT_NPROC, with a user id of its own"),
        "cpu": (D, "RLIMIT_CPU"),
        "exit-attribution": (D, "the zygote, which reaps it"),
    },
    "cgroup-memory": {
        "memory": (D, "RLIMIT_AS, and a look at its memory every 50 ms"),
        "oom-attribution": (D, "RLIMIT_AS, and a look at its memory every 50 ms"),
    },
    "cgroup-pids": {"processes": (E, "RLIMIT_NPROC, with a user id of its own")},
    "userns": {},
    "seccomp": {
        "syscall-filter": (A, ""),
        "no-tcp": (E, "Landlock and a network namespace"),
        "no-udp": (E, "a network namespace"),
        "private-memory": (E, "a PID namespace"),
    },
    "pidfd": {"exit-attribution": (D, "the zygote, which reaps it")},
}


@root_only
@whole_host
@pytest.mark.parametrize("mask", CHANGES)
def test_a_mask_changes_what_hangs_on_it_and_nothing_else(mask: str) -> None:
    before = {each.guarantee: (each.level, each.by) for each in examined("untrusted").findings}
    findings = examined("untrusted", mask).findings
    after = {each.guarantee: (each.level, each.by) for each in findings}
    changed = {name: found for name, found in after.items() if found != before[name]}
    if mask == "userns" and not may_limit_others():
        # The manager may not set the limits of a sandbox of another user id then.
        changed.pop("cpu", None)
    assert changed == CHANGES[mask]
    remedies = {each.guarantee: each.remedy for each in findings if each.level is not E}
    for name in set(remedies) & set(CHANGES[mask]):
        assert f"take {mask} out of sandbox_disable" in remedies[name]


@root_only
@whole_host
def test_masks_concern_trusted_jobs_too() -> None:
    assert levels(examined("trusted", "landlock"))["no-signals"] is A
    found = {
        each.guarantee: (each.level, each.by) for each in examined("trusted", "pidfd").findings
    }
    assert found["exit-attribution"] == (E, "the zygote, which reaps it")
    assert levels(examined("trusted", "cgroup"))["memory"] is D


def test_a_zygote_that_cannot_start_is_a_finding() -> None:
    settings = make_settings(sandbox_start_timeout=0.001)
    found = asyncio.run(doctor.examine(settings, "trusted"))
    assert set(levels(found).values()) == {A}
    assert all("sandbox_start_timeout" in each.evidence for each in found.findings)
    assert not found.enforced


# --- claims and facts -----------------------------------------------------------------------


def compare(profile: Profile, *disable: str, nobody: bool = False) -> dict[str, Any]:
    """What the doctor claims, and what other jobs could do, by ``support.doctor_claims``."""
    command = [sys.executable, "-m", "support.doctor_claims", profile, ",".join(disable)]
    if nobody:
        command = ordinary.command(command, reach=[ROOT])
    done = subprocess.run(
        command, cwd=TESTS, env={**os.environ, "PYTHONPATH": str(TESTS)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lies(found: dict[str, Any]) -> list[str]:
    """Claims that the facts contradict."""
    claims = {name: level for name, (level, _) in found["claims"].items()}
    facts = found["observed"]
    assert facts["left before"] == 1, facts
    assert facts["hung"] == "timed_out timeout", facts
    in_limits = {kind: facts[kind] != "succeeded" for kind in ("heap", "memfd")}
    alone = not facts["tmp of the host"] and not facts["tmp of the next"]
    true = {
        "kill": claims["kill"] == "absent" if facts["left after"] else claims["kill"] != "absent",
        "memory": claims["memory"]
        == (
            "enforced" if all(in_limits.values()) else "degraded" if any(in_limits.values()) else A
        ),
        "oom-attribution": (claims["oom-attribution"] == "enforced")
        == (facts["heap"] == facts["memfd"] == "limit_exceeded memory"),
        "no-tcp": (claims["no-tcp"] == "enforced") == (facts["tcp"] == ""),
        "private-tmp": (claims["private-tmp"] == "enforced") == (facts["tmp"] == "kept" and alone),
    }
    return [f"{name}: {claims[name]} ({facts})" for name, holds in true.items() if not holds]


@pytest.mark.parametrize(
    ("profile", "disable"),
    [
        ("trusted", ()), ("untrusted", ()), ("trusted", ("cgroup",)), ("untrusted", ("cgroup",)),
        ("untrusted", ("cgroup-memory",)), ("untrusted", ("landlock", "seccomp")),
    ],
)  # fmt: skip
def test_what_it_claims_is_what_jobs_find(profile: Profile, disable: tuple[str, ...]) -> None:
    assert not lies(compare(profile, *disable))


@as_nobody
@pytest.mark.parametrize(
    ("profile", "disable"),
    [
        ("trusted", ()), ("untrusted", ()), ("untrusted", ("userns",)),
        ("untrusted", ("userns", "landlock", "seccomp")),
    ],
)  # fmt: skip
def test_what_it_claims_as_nobody_is_what_jobs_find(
    profile: Profile, disable: tuple[str, ...]
) -> None:
    found = compare(profile, *disable, nobody=True)
    assert not lies(found)
    claims = {name: level for name, (level, _) in found["claims"].items()}
    if "userns" in disable:
        assert claims["private-tmp"] == "absent"
    if set(disable) == {"userns", "landlock", "seccomp"}:
        assert {claims[name] for name in ("no-tcp", "no-unix", "no-signals")} == {"absent"}


# --- what follows ---------------------------------------------------------------------------


@pytest.mark.parametrize("disable", [("cgroup",), ("cgroup-memory",)])
@async_test
async def test_an_untrusted_sandbox_is_refused_where_it_would_not_hold(
    disable: tuple[str, ...],
) -> None:
    with pytest.raises(SandboxUnavailable, match=r"untrusted_requires.*memory") as caught:
        await Sandbox(
            ["support.sandbox_tasks"], 1, "untrusted", settings=make_settings(disable)
        ).start()
    assert "\n" not in str(caught.value)
    assert f"take {disable[0]} out of sandbox_disable" in str(caught.value)


@async_test
async def test_what_is_not_required_is_run_without() -> None:
    settings = make_settings(("cgroup-memory",), untrusted_requires="kill,stack")
    async with Sandbox(["support.sandbox_tasks"], 1, "untrusted", settings=settings) as sandbox:
        outcome = await sandbox.run(sandbox_tasks.add.call(1, 2))
        assert outcome.value == 3
        assert "stack" in outcome.guarantees
        assert "memory" not in outcome.guarantees
    misspelt = make_settings(untrusted_requires="kill,stacks")
    sandbox = Sandbox(["support.sandbox_tasks"], 1, "untrusted", settings=misspelt)
    with pytest.raises(ConfigurationError, match="no guarantee is named stacks"):
        await sandbox.start()


@async_test
async def test_a_plain_trusted_sandbox_examines_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> Examination:
        raise AssertionError("it was examined")

    monkeypatch.setattr(protection, "examine", never)
    monkeypatch.setattr(protection, "_known", {})
    async with make_sandbox() as sandbox:
        assert (await sandbox.run(sandbox_tasks.add.call(1, 2))).guarantees == ()


@root_only
@whole_host
@async_test
async def test_every_outcome_of_a_node_names_what_was_in_force(queue_name: str) -> None:
    settings = make_settings()
    broker = MemoryBroker(queue_name, BrokerOptions())
    worker = Worker(broker=broker, modules=["support.jobs"], concurrency=1, settings=settings)
    await worker.start()
    try:
        async with (
            MemoryBroker(queue_name, BrokerOptions()) as producer,
            Client(broker=producer, settings=settings) as client,
        ):
            for call, profile in (
                (jobs.fine.call(1), "trusted"),
                (jobs.hostile.call(), "untrusted"),
            ):
                outcome = await (await client.enqueue(call)).outcome(30)
                assert outcome.profile == profile
                assert set(PROMISED[outcome.profile]) <= set(outcome.guarantees)  # type: ignore[index]
    finally:
        await worker.stop()


@async_test
async def test_an_untrusted_queue_is_not_served_where_it_would_not_hold(queue_name: str) -> None:
    settings = make_settings(("cgroup",), untrusted_queues=("default",))
    broker = MemoryBroker(queue_name, BrokerOptions())
    worker = Worker(broker=broker, modules=["support.jobs"], concurrency=1, settings=settings)
    with pytest.raises(ConfigurationError, match=r"queue 'default' is untrusted.*memory"):
        await worker.start()


# --- the command ----------------------------------------------------------------------------

_FIELDS = {
    "guarantee": str, "level": str, "by": str, "bypass": str, "remedy": str, "evidence": str,
    "description": str, "promised": bool,
}  # fmt: skip


@pytest.mark.parametrize(("disable", "code"), [("", 0), ("cgroup-memory", 6), ("seccomp", 7)])
@root_only
@whole_host
def test_the_command_as_json(disable: str, code: int, tmp_path: Path) -> None:
    env = {"FUMEHOOD_SANDBOX_DISABLE": disable}
    done = run_fumehood("doctor", "--json", "--profile", "untrusted", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (code, "")
    data = json.loads(done.stdout)
    assert set(data) == {"version", "exit_code", "host", "profiles"}
    assert (data["version"], data["exit_code"]) == (1, code)
    assert set(data["host"]) == {"kernel", "machine", "uid"}
    (profile,) = data["profiles"]
    assert set(profile) == {"profile", "worst", "seconds", "findings"}
    assert profile["worst"] == {0: "enforced", 6: "degraded", 7: "absent"}[code]
    assert [each["guarantee"] for each in profile["findings"]] == list(DESCRIPTIONS)
    for each in profile["findings"]:
        assert {name: type(value) for name, value in each.items()} == _FIELDS
        assert "\n" not in "".join(value for value in each.values() if isinstance(value, str))


@root_only
@whole_host
def test_the_command_for_people(tmp_path: Path) -> None:
    env = {"FUMEHOOD_SANDBOX_DISABLE": "cgroup-memory", "COLUMNS": "100"}
    done = run_fumehood("doctor", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (6, "")
    trusted, untrusted = done.stdout.split("untrusted jobs, examined")
    for name in DESCRIPTIONS:
        assert name in trusted
        assert name in untrusted
    assert "(no-tcp)" in trusted
    assert "memory, oom-attribution: take cgroup-memory out of sandbox_disable" in untrusted


@as_nobody
def test_the_command_as_nobody() -> None:
    command = [sys.executable, "-c", "from fumehood.common.cli import main; main()", "doctor"]
    done = subprocess.run(
        ordinary.command([*command, "--json"], reach=[ROOT]), cwd="/", stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    data = json.loads(done.stdout)
    assert data["host"]["uid"] == NOBODY
    worst = {profile["worst"] for profile in data["profiles"]}
    assert done.returncode == data["exit_code"] == (7 if "absent" in worst else 6)
    assert {profile["profile"] for profile in data["profiles"]} == {"trusted", "untrusted"}


def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    env = {"FUMEHOOD_CONCURRENCY": "none"}
    done = run_fumehood("doctor", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fumehood doctor: ")
    assert done.stderr.count("\n") == 1
