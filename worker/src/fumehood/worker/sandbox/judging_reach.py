"""Judgements on what a job can reach outside of itself."""

from __future__ import annotations

from collections.abc import Mapping

from fumehood.worker.sandbox import judging
from fumehood.worker.sandbox.acts import OK
from fumehood.worker.sandbox.judging import (
    TMP,
    Judge,
    Judgement,
    Seen,
    absent,
    degraded,
    enforced,
    refusals,
)

_NETNS, _MOUNTNS, _PIDNS = "a network namespace", "a root of its own", "a PID namespace"
# The file lies where everybody may go: it is not its mode that refuses.
_SOCKETS = {
    "socket EACCES": "seccomp",
    "connect EACCES": "Landlock",
    "listen EACCES": "Landlock",
    **dict.fromkeys(
        (
            f"{step} {name}"
            for step in ("connect", "send")
            for name in ("ENETUNREACH", "EADDRNOTAVAIL", "ECONNREFUSED", "EHOSTUNREACH")
        ),
        _NETNS,
    ),
    f"listen in {_NETNS}": _NETNS,
    f"sent in {_NETNS}": _NETNS,
}
_UNIX = {
    "unix by abstract name": {"connect ECONNREFUSED": _NETNS, "connect EPERM": "Landlock"},
    "unix by path": {
        "connect ENOENT": _MOUNTNS,
        "connect ENOTDIR": _MOUNTNS,
        "connect EACCES": "Landlock",
    },
}
_FILES = {"ENOENT": _MOUNTNS, "ENOTDIR": _MOUNTNS, "EACCES": "Landlock"}
_CALLS: dict[str, str] = dict.fromkeys(("EPERM", "EACCES", "ENOSYS"), "seccomp")
_TRACING = {
    "ENOENT": _PIDNS,
    "ESRCH": _PIDNS,
    "EACCES": "the kernel's rules for tracing",
    "EPERM": "the kernel's rules for tracing",
}


# --- network --------------------------------------------------------------------------------


def _reached(seen: Seen, prefixes: tuple[str, ...]) -> dict[str, str]:
    """What the node itself can reach, and how a job fared there."""
    ends: Mapping[str, str] = seen.value("network").get("reached", {})
    return {
        act: end
        for act, end in ends.items()
        if act.startswith(prefixes) and seen.controls.get(act) == OK
    }


def _is_alone(seen: Seen) -> bool:
    """Whether the job was in another network than the node."""
    inside = str(seen.value("network").get("namespace", ""))
    return bool(inside and seen.network_namespace and inside != seen.network_namespace)


def _talks(seen: Seen) -> bool:
    return seen.value("network").get("pair") == OK


def no_tcp(seen: Seen) -> Judgement:
    """Listeners of the host that the node reaches are out of reach, and nobody reaches the job."""
    acts = _reached(seen, ("tcp", "mptcp"))
    if acts:
        end = str(seen.value("network").get("listen", ""))
        acts["listening"] = f"listen in {_NETNS}" if end == OK and _is_alone(seen) else end
    needs = ("seccomp", "namespaces", "landlock-tcp")
    return refusals(acts, _SOCKETS, _talks(seen), *needs)


def no_udp(seen: Seen) -> Judgement:
    """No datagram comes to a listener of the host."""
    acts = _reached(seen, ("udp",))
    for act, end in acts.items():
        if end == OK and act not in seen.datagrams and _is_alone(seen):
            acts[act] = f"sent in {_NETNS}"
    return refusals(acts, _SOCKETS, _talks(seen), "seccomp", "namespaces")


def no_unix(seen: Seen) -> Judgement:
    """Neither an abstract name nor a path leads to a listener of the host."""
    acts = _reached(seen, ("unix",))
    mechanisms = {f"{act} {end}": by for act, ends in _UNIX.items() for end, by in ends.items()}
    told = refusals(
        {act: f"{act} {end}" for act, end in acts.items()},
        mechanisms,
        _talks(seen) and len(acts) == len(_UNIX),
        "namespaces",
        "landlock-scopes",
    )
    evidence = ", ".join(f"{act}: {end}" for act, end in acts.items())
    return Judgement(told.level, told.by, told.bypass, evidence or told.evidence, told.needs)


# --- processes ------------------------------------------------------------------------------


def private_memory(seen: Seen) -> Judgement:
    """Nobody's environment or memory can be read but one's own, and nobody be traced."""
    found = seen.value("processes")
    allowed = found.get("own", {}).get("status") == OK and seen.controls.get("neighbour") == OK
    mechanisms = dict(_TRACING)
    if seen.value("kernel").get("status", {}).get("Seccomp") == "2":
        mechanisms["EPERM"] = "seccomp"  # of ptrace itself; files in /proc answer EACCES
    return refusals(found.get("spied", {}), mechanisms, allowed, "namespaces", "landlock")


def no_signals(seen: Seen) -> Judgement:
    """One's own process can be signalled, nobody else's; a SIGTERM does not reach a neighbour."""
    found = seen.value("processes")
    acts = dict(found.get("signals", {}))
    if acts and not seen.neighbour_lives:
        acts["a neighbour"] = OK
    mechanisms = {"ESRCH": _PIDNS, "EPERM": "Landlock"}
    if seen.own_uids:
        mechanisms["EPERM"] = "a user id of its own"
    allowed = found.get("own", {}).get("signal") == OK
    return refusals(acts, mechanisms, allowed, "namespaces", "landlock-scopes")


# --- files ----------------------------------------------------------------------------------


def read_only_code(seen: Seen) -> Judgement:
    """Code that the node may change can be read, and not be opened to change it."""
    found = seen.value("files")
    readable = set(found.get("own", {}).values()) == {OK}
    acts: dict[str, str] = found.get("code", {})
    if readable and not seen.code and not seen.own_uids:
        return enforced("file permissions", "the node may not change it either")
    mounted = set(found.get("mounts", {}).values()) <= {"ro", ""}
    refused = "read-only mounts" if mounted else "Landlock"
    if seen.own_uids:
        refused = "a user id of its own"
    mechanisms = {"EROFS": "read-only mounts", "EACCES": refused, "EPERM": refused}
    mechanisms |= dict.fromkeys(("ENOENT", "ENOTDIR"), _MOUNTNS)  # code that is not even shown
    return refusals(acts, mechanisms, readable, "namespaces", "landlock")


def hidden_files(seen: Seen) -> Judgement:
    """A file that everybody may read is not there to be read."""
    found = seen.value("files")
    allowed = set(found.get("own", {}).values()) == {OK} and seen.controls.get("hidden") == OK
    return refusals(found.get("hidden", {}), _FILES, allowed, "namespaces", "landlock")


def private_tmp(seen: Seen) -> Judgement:
    """Files can be made, no more than the limit; neither the host nor the next job sees them."""
    found = seen.value("litter")
    places: dict[str, str] = found.get("left", {})
    if not seen.ok("litter", "look") or OK not in places.values():
        told = ", ".join(f"{place}: {end}" for place, end in places.items())
        return absent(
            f"no temporary file can be made ({told or seen.fate('litter')})", "namespaces"
        )
    next_sees = seen.outcomes["look"].value
    written, full = int(found["written"]), str(found["full"])
    told = f"{written} bytes, then {full}; the host sees {list(seen.litter)}, the next {next_sees}"
    if seen.litter or next_sees:
        return absent(told, "namespaces")
    if full not in ("ENOSPC", "EDQUOT") or written > TMP:
        return degraded("a tmpfs of its own", "its size", told, "namespaces")
    return enforced("a tmpfs of its own in a mount namespace of its own", told)


# --- the kernel -----------------------------------------------------------------------------


def no_capabilities(seen: Seen) -> Judgement:
    """All sets are empty, what needs one fails, and no program can bring one back."""
    found = seen.value("kernel")
    status, rights = found.get("status", {}), found.get("rights", {})
    told = ", ".join(f"{name} {end}" for name, end in {**status, **rights}.items())
    if not status or found.get("own") != OK:
        return absent(seen.fate("kernel"))
    held = [name for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(status[name], 16)]
    done = [name for name, end in rights.items() if end == OK]
    if held or done:
        return absent(told, "untrusted")
    if int(status["CapBnd"], 16) and status.get("NoNewPrivs") != "1":
        return degraded("the node's own user", "programs with a setuid bit", told, "untrusted")
    return enforced("empty capability sets and no_new_privs", told)


def syscall_filter(seen: Seen) -> Judgement:
    """Calls that the node may make are refused."""
    found = seen.value("kernel")
    acts = {act: end for act, end in found.get("calls", {}).items() if seen.controls.get(act) == OK}
    return refusals(acts, _CALLS, found.get("own") == OK, "seccomp")


#: By the guarantee.
JUDGES: dict[str, Judge] = {
    "kill": judging.kill,
    "memory": judging.memory,
    "oom-attribution": judging.oom_attribution,
    "processes": judging.processes,
    "cpu": judging.cpu,
    "exit-attribution": judging.exit_attribution,
    "stack": judging.stack,
    "private-memory": private_memory,
    "no-signals": no_signals,
    "no-tcp": no_tcp,
    "no-udp": no_udp,
    "no-unix": no_unix,
    "read-only-code": read_only_code,
    "private-tmp": private_tmp,
    "hidden-files": hidden_files,
    "no-capabilities": no_capabilities,
    "syscall-filter": syscall_filter,
}
