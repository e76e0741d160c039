"""From what was tried to a finding: the one place that says how far a guarantee holds.

A refusal counts when its errno is one that the mechanism gives; any other end of a forbidden act is
an open door, even if it led nowhere. Where the allowed act failed as well, nothing is proven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fumehood.common.outcome import Outcome, Status
from fumehood.common.task import Profile
from fumehood.worker.sandbox.acts import OK
from fumehood.worker.sandbox.guarantees import Finding, Level
from fumehood.worker.sandbox.remedies import Host

#: What the probes were given, and what they were to keep to.
MEMORY, PROCESSES, CPU, TMP, EXIT_CODE = 32 << 20, 8, 0.1, 1 << 20, 7
#: The last line of the stack of the job that hangs, but for the number of its line.
HANGS_IN = " in wait"
_PEAK_LEAST = MEMORY * 3 // 4
_NPROC_SLACK = 24  # processes of the same user that may come and go meanwhile
_MANY = "RLIMIT_AS, and a look at its memory every 50 ms"


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was seen of one profile. Names of outcomes are those of ``doctor``'s jobs."""

    profile: Profile
    host: Host
    outcomes: Mapping[str, Outcome] = field(default_factory=dict[str, Outcome])
    controls: Mapping[str, str] = field(default_factory=dict[str, str])
    failure: str = ""  # why there are no outcomes at all
    holds: frozenset[str] = frozenset()  # what the cgroups of sandboxes do, as ``Tree.holds``
    driver: str = ""
    kills_surely: bool = False  # whether what forks as fast as it can is reached
    own_uids: bool = False
    kernel_reports: bool = False  # whether the kernel tells the manager how a process ended
    pid_namespace: bool = False
    network_namespace: str = ""  # the node's own, as ``acts.network_namespace``
    was_marked: bool = False  # whether what a job had detached was seen alive
    still_marked: tuple[int, ...] = ()  # what is left of it after the job's end
    litter: tuple[str, ...] = ()  # the host's folders in which a job's file was found
    datagrams: frozenset[str] = frozenset()  # listeners that a job's datagram came to
    neighbour_lives: bool = True
    code: tuple[str, ...] = ()  # what the node may change

    def value(self, name: str) -> dict[str, Any]:
        """What a probe has told; nothing of one that did not come to tell."""
        outcome = self.outcomes.get(name)
        return outcome.value if outcome is not None and outcome.ok else {}

    def fate(self, name: str) -> str:
        """How a probe ended, in a few words."""
        outcome = self.outcomes.get(name)
        if outcome is None:
            return self.failure or f"{name} was not run in time"
        return f"{name}: {_in_words(outcome)}"

    def is_over(self, name: str, limit: str) -> bool:
        """Whether a probe was stopped at a limit."""
        outcome = self.outcomes.get(name)
        return (
            outcome is not None
            and outcome.status is Status.LIMIT_EXCEEDED
            and outcome.limit == limit
        )

    def needs(self, name: str, mechanism: str) -> tuple[str, ...]:
        """What a probe wants that did not get far: a mechanism, or the right to set limits."""
        outcome = self.outcomes.get(name)
        unlimited = outcome is not None and outcome.stage == "limits"
        return ("limits", mechanism) if unlimited else (mechanism,)

    def ok(self, *names: str) -> bool:
        """Whether these probes succeeded."""
        return all(name in self.outcomes and self.outcomes[name].ok for name in names)


def _in_words(outcome: Outcome) -> str:
    if outcome.status is Status.LIMIT_EXCEEDED:
        peak = "" if outcome.peak is None else f" at {round(outcome.peak, 3):,}"
        return f"stopped at its {outcome.limit} limit of {outcome.limit_value:,}{peak}"
    if outcome.error is not None:
        return f"raised {outcome.error.type}"
    return outcome.reason or str(outcome.status)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A level and why; ``needs`` names mechanisms, as ``remedies`` knows them."""

    level: Level
    by: str = ""
    bypass: str = ""
    evidence: str = ""
    needs: tuple[str, ...] = ()


def absent(evidence: str, *needs: str) -> Judgement:
    """Nothing holds it, or nothing is proven."""
    return Judgement(Level.ABSENT, evidence=evidence, needs=needs)


def enforced(by: str, evidence: str) -> Judgement:
    """It holds."""
    return Judgement(Level.ENFORCED, by, evidence=evidence)


def degraded(by: str, bypass: str, evidence: str, *needs: str) -> Judgement:
    """It holds, but for who knows the way around."""
    return Judgement(Level.DEGRADED, by, bypass, evidence, needs)


def refusals(
    acts: Mapping[str, str], mechanisms: Mapping[str, str], allowed: bool, *needs: str
) -> Judgement:
    """All of these acts are to fail, each by an end that ``mechanisms`` names.

    ``allowed`` is whether what is allowed succeeded, without which nothing is proven.
    """
    told = ", ".join(f"{act}: {end}" for act, end in acts.items())
    if not acts or not allowed:
        return absent(f"nothing could be tried ({told})" if told else "nothing could be tried")
    by = dict.fromkeys(mechanisms[end] for end in acts.values() if end in mechanisms)
    doors = [act for act, end in acts.items() if end not in mechanisms]
    if not doors:
        return enforced(" and ".join(by), told)
    if len(doors) == len(acts):
        return absent(told, *needs)
    return degraded(" and ".join(by), ", ".join(doors), told, *needs)


# --- limits ---------------------------------------------------------------------------------


def kill(seen: Seen) -> Judgement:
    """What detached itself is seen alive before the deadline, and is gone after it."""
    outcome = seen.outcomes.get("hang")
    if not seen.was_marked or outcome is None or outcome.status is not Status.TIMED_OUT:
        return absent(f"what a job detaches was not seen; {seen.fate('hang')}", "kill")
    if seen.still_marked:
        return absent(f"process {seen.still_marked[0]} outlived its job", "kill")
    told = "a detached grandchild was alive before the deadline, and gone at the outcome"
    if "kill" not in seen.holds:
        way = "forking faster than the tree is walked"
        if not seen.pid_namespace:
            way += ", or killing the zygote too"
        return degraded("child subreapers and a walk through /proc", way, told, "kill")
    if not seen.kills_surely:
        way = "forking faster than the cgroup is read"
        return degraded(f"cgroups ({seen.driver})", way, told, "kill-file")
    return _unless_left(seen, enforced(f"cgroups ({seen.driver})", told))


def _unless_left(seen: Seen, judged: Judgement) -> Judgement:
    """As judged, unless an untrusted job can step out of its cgroup."""
    doors = [path for path, end in seen.value("files").get("cgroups", {}).items() if end == OK]
    if seen.profile == "trusted" or judged.level is not Level.ENFORCED:
        return judged
    if not seen.ok("files"):
        return degraded(judged.by, "leaving the cgroup was not tried", judged.evidence)
    if not doors:
        return judged
    way = f"leaving the cgroup by {doors[0]}"
    return degraded(judged.by, way, judged.evidence, "namespaces", "landlock")


def memory(seen: Seen) -> Judgement:
    """Of the heap and of files in memory alike, what is within the limit can be had, no more."""
    told = "; ".join(seen.fate(name) for name in ("little heap", "heap", "memfd"))
    if not seen.ok("little heap"):
        return absent(told, *seen.needs("little heap", "memory"))
    heap, files = seen.is_over("heap", "memory"), seen.is_over("memfd", "memory")
    if heap and files:
        by = f"the memory controller of cgroups ({seen.driver})"
        return _unless_left(seen, enforced(by, told))
    if heap or _ran_out_by_itself(seen):
        way = "files in memory" if not files else "memory of its own"
        return degraded(_MANY, f"{way}, such as a memfd", told, "memory")
    return absent(told, "memory")


def _ran_out_by_itself(seen: Seen) -> bool:
    """Whether the task was told that there is no more, as RLIMIT_AS has it."""
    outcome = seen.outcomes.get("heap")
    return (
        outcome is not None
        and outcome.error is not None
        and outcome.error.type.endswith("MemoryError")
    )


def oom_attribution(seen: Seen) -> Judgement:
    """The outcome of who ran out of memory says so, with limit and peak."""
    told = seen.fate("heap")
    outcome = seen.outcomes.get("heap")
    exact = (
        outcome is not None
        and seen.is_over("heap", "memory")
        and outcome.limit_value == MEMORY
        and outcome.peak is not None
        and outcome.peak >= _PEAK_LEAST
    )
    if exact and "memory" in seen.holds:
        return _unless_left(seen, enforced("the counts of its cgroup", told))
    if exact or _ran_out_by_itself(seen):
        return degraded(_MANY, "catching MemoryError", told, "memory")
    return absent(told, *seen.needs("heap", "memory"))


def processes(seen: Seen) -> Judgement:
    """Two children can be had, and no more than the limit leaves."""
    found = seen.value("forks")
    children, why = int(found.get("children", 0)), str(found.get("why", ""))
    told = f"{children} children beside itself, then {why}" if found else seen.fate("forks")
    if children < 2:
        return absent(told, *seen.needs("forks", "processes"))
    exact = children == PROCESSES - 1 and why == "EAGAIN"
    if exact and "processes" in seen.holds:
        by = f"the pids controller of cgroups ({seen.driver})"
        return _unless_left(seen, enforced(by, told))
    if exact and seen.own_uids:
        return enforced("RLIMIT_NPROC, with a user id of its own", told)
    if why == "EAGAIN":
        way = "others of the node's user that end make room"
        return degraded("RLIMIT_NPROC", way, told, "processes")
    return absent(told, "processes")


def cpu(seen: Seen) -> Judgement:
    """Children that together use more than the limit end their job, though none does alone."""
    told = "; ".join(seen.fate(name) for name in ("little cpu", "cpu together"))
    if not seen.ok("little cpu"):
        return absent(told, *seen.needs("little cpu", "cpu"))
    if seen.is_over("cpu together", "cpu"):
        return _unless_left(seen, enforced(f"the CPU time of its cgroup ({seen.driver})", told))
    told = f"{told}; {seen.fate('cpu alone')}"
    if seen.is_over("cpu alone", "cpu"):
        return degraded("RLIMIT_CPU", "many processes", told, "cpu")
    return absent(told, "cpu")


def exit_attribution(seen: Seen) -> Judgement:
    """A crash and an exit without a word are told apart, by a witness that is not the job."""
    crash, left = seen.outcomes.get("crash"), seen.outcomes.get("leave")
    told = f"{seen.fate('crash')}; {seen.fate('leave')}"
    known = (
        crash is not None
        and crash.status is Status.CRASHED
        and crash.signal == "SIGSEGV"
        and left is not None
        and left.status is Status.EXITED
        and left.exit_code == EXIT_CODE
    )
    if not known:
        return absent(told, "pidfd")
    if seen.kernel_reports:
        return enforced("the kernel, asked by PIDFD_GET_INFO", told)
    if seen.profile == "trusted":
        return enforced("the zygote, which reaps it", told)
    way = "code that a task module runs while it is imported"
    return degraded("the zygote, which reaps it", way, told, "pidfd")


def stack(seen: Seen) -> Judgement:
    """The stack of who was killed at the deadline names the function that hung."""
    outcome = seen.outcomes.get("hang")
    if outcome is None or outcome.status is not Status.TIMED_OUT:
        return absent(seen.fate("hang"))
    if HANGS_IN in outcome.stack:
        return enforced("faulthandler, before the kill", "the stack names where the job hung")
    return absent(f"the stack does not name where the job hung: {outcome.stack[:200]!r}")


Judge = Callable[[Seen], Judgement]


def finding(seen: Seen, name: str, judge: Judge, promised: Iterable[str]) -> Finding:
    """The finding on one guarantee."""
    judged = judge(seen) if not seen.failure else absent(seen.failure, "namespaces")
    needs = judged.needs if name in promised else ("untrusted",)
    remedy = "" if judged.level is Level.ENFORCED else seen.host.remedy(needs)
    by, bypass, evidence = map(_one_line, (judged.by, judged.bypass, judged.evidence))
    return Finding(name, judged.level, by, bypass, _one_line(remedy), evidence)


def _one_line(text: str) -> str:
    return " ".join(text.split())
