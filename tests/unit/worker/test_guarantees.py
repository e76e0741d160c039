"""How what was seen becomes a finding, and what is lacking of what is required."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fumehood.common import ConfigurationError, Outcome, Status
from fumehood.common.codec import encode
from fumehood.common.outcome import Blame, ErrorInfo
from fumehood.common.settings import DEFAULT_REQUIRES, Settings
from fumehood.worker.sandbox import judging, judging_reach
from fumehood.worker.sandbox.acts import OK
from fumehood.worker.sandbox.guarantees import (
    DESCRIPTIONS,
    PROMISED,
    Examination,
    Finding,
    Level,
)
from fumehood.worker.sandbox.judging import MEMORY, Judgement, Seen, finding, refusals
from fumehood.worker.sandbox.judging_reach import JUDGES
from fumehood.worker.sandbox.protection import refusal
from fumehood.worker.sandbox.remedies import Host

HOST = Host(frozenset(), {}, {})


def done(value: Any) -> Outcome:
    return Outcome(Status.SUCCEEDED, value_bytes=encode(value))


def over(limit: str, value: float, peak: float) -> Outcome:
    return Outcome(
        Status.LIMIT_EXCEEDED, blame=Blame.LIMIT, limit=limit, limit_value=value, peak=peak
    )


def raised(kind: str) -> Outcome:
    return Outcome(Status.FAILED, error=ErrorInfo(kind, "no"))


def seen(**facts: Any) -> Seen:
    return Seen(**{"profile": "untrusted", "host": HOST, **facts})


# --- the table ------------------------------------------------------------------------------


def test_every_name_has_all_that_belongs_to_it() -> None:
    assert list(JUDGES) == list(DESCRIPTIONS)
    assert set(PROMISED["untrusted"]) == set(DESCRIPTIONS)
    assert set(PROMISED["trusted"]) == {
        "kill", "memory", "oom-attribution", "processes", "cpu", "exit-attribution", "stack",
    }  # fmt: skip
    assert set(DEFAULT_REQUIRES) <= set(DESCRIPTIONS)
    assert all(text.endswith(".") for text in DESCRIPTIONS.values())


def test_of_nothing_seen_nothing_holds() -> None:
    for name, judge in JUDGES.items():
        found = finding(seen(), name, judge, PROMISED["untrusted"])
        assert found.level is Level.ABSENT, name
        assert found.evidence, name
    failed = finding(seen(failure="no\nzygote"), "kill", JUDGES["kill"], ["kill"])
    assert (failed.level, failed.evidence) == (Level.ABSENT, "no zygote")


# --- refusals -------------------------------------------------------------------------------


def level_of(judged: Judgement) -> tuple[Level, str, str]:
    return judged.level, judged.by, judged.bypass


def test_a_refusal_counts_by_its_errno_only() -> None:
    by = {"EROFS": "a mount", "EACCES": "Landlock"}
    both = refusals({"a": "EROFS", "b": "EACCES"}, by, True)
    assert level_of(both) == (Level.ENFORCED, "a mount and Landlock", "")
    one = refusals({"a": "EROFS", "b": OK}, by, True)
    assert level_of(one) == (Level.DEGRADED, "a mount", "b")
    # It led nowhere, and yet nothing says that the sandbox was why.
    strange = refusals({"a": "EROFS", "b": "ETIMEDOUT"}, by, True)
    assert level_of(strange) == (Level.DEGRADED, "a mount", "b")
    assert refusals({"a": "ETIMEDOUT"}, by, True).level is Level.ABSENT
    assert "a: ok" in refusals({"a": OK}, by, True).evidence


def test_without_a_positive_control_nothing_is_proven() -> None:
    by = {"EROFS": "a mount"}
    assert refusals({"a": "EROFS"}, by, False).level is Level.ABSENT
    assert refusals({}, by, True).level is Level.ABSENT


def network(reached: dict[str, str], *, inside: str = "net:[2]", **more: str) -> dict[str, Outcome]:
    value = {"reached": reached, "listen": "socket EACCES", "namespace": inside, "pair": OK, **more}
    return {"network": done(value)}


def test_what_the_node_cannot_reach_itself_proves_nothing() -> None:
    ends = {"tcp": "connect ENETUNREACH", "tcp6": "connect ENETUNREACH"}
    found = seen(outcomes=network(ends), controls={"tcp": OK, "tcp6": "connect EADDRNOTAVAIL"})
    judged = judging_reach.no_tcp(found)
    assert judged.level is Level.ENFORCED
    assert "tcp6" not in judged.evidence
    none = replace(found, controls={})
    assert judging_reach.no_tcp(none).level is Level.ABSENT


def test_listening_is_harmless_in_another_network_only() -> None:
    ends = {"tcp": "connect EACCES"}
    found = seen(
        outcomes=network(ends, listen=OK), controls={"tcp": OK}, network_namespace="net:[1]"
    )
    assert judging_reach.no_tcp(found).level is Level.ENFORCED
    for inside in ("net:[1]", ""):
        same = replace(found, outcomes=network(ends, listen=OK, inside=inside))
        assert level_of(judging_reach.no_tcp(same)) == (Level.DEGRADED, "Landlock", "listening")


def test_a_datagram_that_arrived_outweighs_all_else() -> None:
    found = seen(outcomes=network({"udp": OK}), controls={"udp": OK}, network_namespace="net:[1]")
    assert judging_reach.no_udp(found).level is Level.ENFORCED
    arrived = replace(found, datagrams=frozenset({"udp"}))
    assert judging_reach.no_udp(arrived).level is Level.ABSENT


def test_both_kinds_of_unix_sockets_have_to_be_tried() -> None:
    ends = {"unix by abstract name": "connect EPERM", "unix by path": "connect ENOENT"}
    found = seen(outcomes=network(ends), controls=dict.fromkeys(ends, OK))
    assert judging_reach.no_unix(found).level is Level.ENFORCED
    open_path = {**ends, "unix by path": OK}
    judged = judging_reach.no_unix(replace(found, outcomes=network(open_path)))
    assert level_of(judged) == (Level.DEGRADED, "Landlock", "unix by path")
    # Refused as by Landlock's rules for names, of which a path is none.
    wrong = {**ends, "unix by path": "connect EPERM"}
    judged = judging_reach.no_unix(replace(found, outcomes=network(wrong)))
    assert judged.level is Level.DEGRADED
    half = {"unix by path": "connect ENOENT"}
    judged = judging_reach.no_unix(replace(found, outcomes=network(half)))
    assert judged.level is Level.ABSENT


def test_a_neighbour_that_died_was_reached() -> None:
    value = {"signals": {"a neighbour": "ESRCH", "the node": "EPERM"}, "own": {"signal": OK}}
    found = seen(outcomes={"processes": done(value)})
    assert judging_reach.no_signals(found).level is Level.ENFORCED
    judged = judging_reach.no_signals(replace(found, neighbour_lives=False))
    assert (judged.level, judged.bypass) == (Level.DEGRADED, "a neighbour")


# --- limits ---------------------------------------------------------------------------------

_STOPPED = over("memory", MEMORY, MEMORY)
_MEMORY = {"little heap": done(8), "heap": _STOPPED, "memfd": _STOPPED, "files": done({})}


@pytest.mark.parametrize(
    ("change", "level", "bypass"),
    [
        ({}, Level.ENFORCED, ""),
        ({"memfd": done(1)}, Level.DEGRADED, "files in memory, such as a memfd"),
        ({"memfd": done(1), "heap": raised("MemoryError")}, Level.DEGRADED,
         "files in memory, such as a memfd"),
        ({"memfd": done(1), "heap": done(1)}, Level.ABSENT, ""),
        ({"little heap": _STOPPED}, Level.ABSENT, ""),
        ({"files": done({"cgroups": {"/c/cgroup.procs": OK}})}, Level.DEGRADED,
         "leaving the cgroup by /c/cgroup.procs"),
        ({"files": raised("OSError")}, Level.DEGRADED, "leaving the cgroup was not tried"),
    ],
)  # fmt: skip
def test_memory(change: dict[str, Outcome], level: Level, bypass: str) -> None:
    judged = judging.memory(seen(outcomes=_MEMORY | change, holds=frozenset({"memory"})))
    assert (judged.level, judged.bypass) == (level, bypass)


def test_a_kill_that_was_not_witnessed_is_none() -> None:
    hung = Outcome(Status.TIMED_OUT, stack='  File "threading.py", line 1 in wait')
    good = seen(
        outcomes={"hang": hung, "files": done({})}, was_marked=True, kills_surely=True,
        holds=frozenset({"kill"}), driver="v2",
    )  # fmt: skip
    assert judging.kill(good).level is Level.ENFORCED
    assert judging.stack(good).level is Level.ENFORCED
    assert judging.kill(replace(good, was_marked=False)).level is Level.ABSENT
    assert judging.kill(replace(good, still_marked=(7,))).level is Level.ABSENT
    assert judging.kill(replace(good, kills_surely=False)).level is Level.DEGRADED
    assert judging.kill(replace(good, holds=frozenset())).level is Level.DEGRADED
    assert judging.stack(replace(good, outcomes={"hang": Outcome(Status.TIMED_OUT)})).level is (
        Level.ABSENT
    )


@pytest.mark.parametrize(
    ("children", "why", "facts", "level"),
    [
        (7, "EAGAIN", {"holds": frozenset({"processes"})}, Level.ENFORCED),
        (7, "EAGAIN", {"own_uids": True}, Level.ENFORCED),
        (7, "EAGAIN", {}, Level.DEGRADED),
        (9, "EAGAIN", {"own_uids": True}, Level.DEGRADED),
        (24, OK, {"holds": frozenset({"processes"})}, Level.ABSENT),
        (1, "EAGAIN", {"own_uids": True}, Level.ABSENT),
    ],
)
def test_processes(children: int, why: str, facts: dict[str, Any], level: Level) -> None:
    outcomes = {"forks": done({"children": children, "why": why}), "files": done({})}
    assert judging.processes(seen(outcomes=outcomes, **facts)).level is level


# --- examinations ---------------------------------------------------------------------------


def examination(**levels: Level) -> Examination:
    named = {name.replace("_", "-"): level for name, level in levels.items()}
    found = [
        Finding(name, named.get(name, Level.ENFORCED), "x", "y", "do this", "seen")
        for name in DESCRIPTIONS
    ]
    return Examination("untrusted", tuple(found), 0.5)


def test_lacking_is_what_is_required_and_not_enforced() -> None:
    found = examination(memory=Level.DEGRADED, no_tcp=Level.ABSENT)
    assert [each.guarantee for each in found.lacks(["memory", "kill"])] == ["memory"]
    assert found.lacks(["kill"]) == found.lacks([]) == []
    assert set(found.enforced) == set(DESCRIPTIONS) - {"memory", "no-tcp"}
    with pytest.raises(ConfigurationError, match="no guarantee is named no-tpc"):
        found.lacks(["no-tpc"])


def test_the_worst_is_of_what_is_promised() -> None:
    assert examination().worst is Level.ENFORCED
    assert examination(memory=Level.DEGRADED).worst is Level.DEGRADED
    assert examination(memory=Level.DEGRADED, cpu=Level.ABSENT).worst is Level.ABSENT
    trusted = replace(examination(no_tcp=Level.ABSENT), profile="trusted")
    assert trusted.worst is Level.ENFORCED


def test_as_json_it_is_plain_data() -> None:
    data = json.loads(json.dumps(examination(memory=Level.DEGRADED).to_json()))
    assert (data["profile"], data["worst"], data["seconds"]) == ("untrusted", "degraded", 0.5)
    assert data["findings"][1] == {
        "guarantee": "memory", "level": "degraded", "by": "x", "bypass": "y", "remedy": "do this",
        "evidence": "seen", "description": DESCRIPTIONS["memory"], "promised": True,
    }  # fmt: skip


def test_a_refusal_is_one_line_that_names_all() -> None:
    found = examination(memory=Level.DEGRADED, no_tcp=Level.ABSENT)
    text = refusal(found.lacks(Settings().untrusted_requires))
    assert text == (
        "this host does not hold what untrusted_requires names: memory (degraded), "
        "no-tcp (absent): do this"
    )


# --- remedies -------------------------------------------------------------------------------


def test_what_was_masked_is_to_be_unmasked() -> None:
    masked = Host(frozenset({"cgroup", "landlock", "seccomp"}), {"memory": "it is disabled"}, {})
    assert masked.remedy(["memory"]) == "take cgroup out of sandbox_disable"
    assert masked.remedy(["landlock", "seccomp", "landlock"]) == (
        "take landlock out of sandbox_disable; take seccomp out of sandbox_disable"
    )


def test_advice_tells_why() -> None:
    host = Host(frozenset(), {"memory": "it is not mounted"}, {"mount": "EPERM"})
    assert host.remedy(["memory"]).endswith("(it is not mounted)")
    assert host.remedy(["namespaces"]).endswith("(mount: EPERM)")
    assert not host.remedy(["processes"])
    assert not replace(host, has_namespaces=True).remedy(["namespaces"])
