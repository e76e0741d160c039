"""What to change on a host so that a guarantee holds: by the mechanism, and by what is in its way.

The kernel says little of why it refuses. What is known to be in the way is looked at here; it only
chooses among advice, and decides nothing about a level.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fumehood.worker.sandbox import landlock

_CONTAINERS = ("/.dockerenv", "/run/.containerenv")
# Values of /proc/sys in which ordinary users get no user namespace.
_SYSCTLS = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "15000"),
)


@dataclass(frozen=True, slots=True)
class Host:
    """What is known of the host, and of the node on it."""

    disabled: frozenset[str]  # of the setting ``sandbox_disable``
    missing: Mapping[str, str]  # what cgroups cannot be used for -> why
    errors: Mapping[str, str]  # what namespaces there are not -> why
    has_namespaces: bool = False  # PIDs, files and network of its own, for a zygote

    def remedy(self, mechanisms: Iterable[str]) -> str:
        """One line of advice on what is not in force of these mechanisms."""
        found = (_OF[name](self) for name in mechanisms)
        return "; ".join(dict.fromkeys(text for text in found if text))

    def unmask(self, *masks: str) -> str:
        """Advice to use again what was disabled; empty when nothing of it was."""
        used = [mask for mask in masks if mask in self.disabled]
        return f"take {', '.join(used)} out of sandbox_disable" if used else ""

    @property
    def in_container(self) -> bool:
        """Whether this is a container of Docker's, Podman's or Kubernetes's."""
        return self.in_pod or any(map(os.path.exists, _CONTAINERS))

    @property
    def in_pod(self) -> bool:
        """Whether this is a pod of Kubernetes's."""
        return "KUBERNETES_SERVICE_HOST" in os.environ


_MASK_OF = {"memory": "cgroup-memory", "processes": "cgroup-pids", "cpu": "cgroup-cpuacct"}


def _cgroups_for(host: Host, purpose: str) -> str:
    if purpose not in host.missing:
        return ""
    masked = host.unmask("cgroup", _MASK_OF.get(purpose, "cgroup-v2"))
    if masked:
        return masked
    why = host.missing[purpose]
    if host.in_pod:
        advice = (
            "no pod gets cgroups of its own to make without being privileged: bound the pod's "
            "memory and pids, or run the node on the host"
        )
    elif host.in_container:
        advice = "docker run --privileged --cgroupns=private, or bound the container as a whole"
    elif os.geteuid() == 0:
        advice = "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), and its controllers"
    else:
        advice = (
            "set Delegate=yes in the node's systemd unit, or start it by "
            "systemd-run --user --scope -p Delegate=yes"
        )
    return f"{advice} ({why})"


def _namespaces(host: Host) -> str:
    if host.has_namespaces:
        return ""
    masked = host.unmask("userns")
    if masked and os.geteuid() != 0:
        return masked
    found = [
        f"sysctl -w {name.replace('/', '.')}={good}"
        for name, bad, good in _SYSCTLS
        if os.geteuid() != 0 and _sysctl(name) == bad
    ]
    if host.in_pod:
        found.append("allow SYS_ADMIN and an Unconfined seccompProfile in the securityContext")
    elif host.in_container:
        found.append(
            "docker run --cap-add SYS_ADMIN --security-opt apparmor=unconfined "
            "--security-opt seccomp=unconfined --security-opt systempaths=unconfined"
        )
    why = "; ".join(f"{name}: {text}" for name, text in host.errors.items() if name in _NAMED)
    advice = ", ".join(found) or "let the node make namespaces: as root, or by user namespaces"
    return f"{advice} ({why})" if why else advice


_NAMED = ("user", "pid", "net", "mount", "ipc", "start")


def _sysctl(name: str) -> str:
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _landlock_since(host: Host, version: int, kernel: str) -> str:
    masked = host.unmask("landlock")
    if masked:
        return masked
    found = landlock.abi()
    if found >= version:
        return ""
    if not found:
        return f"boot Linux {kernel} or later with lsm=landlock among its security modules"
    return f"Linux {kernel} or later (Landlock ABI {version}; here it is {found})"


def _seccomp(host: Host) -> str:
    return host.unmask("seccomp") or (
        "a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or aarch64"
        if not os.path.exists("/proc/sys/kernel/seccomp")
        else ""
    )


def _pidfd(host: Host) -> str:
    masked = host.unmask("pidfd")
    return masked or _cgroups_for(host, "kill") or "Linux 6.15 or later (PIDFD_GET_INFO)"


def _limits(host: Host) -> str:
    """Without user namespaces, only CAP_SYS_RESOURCE may limit a process of another user."""
    advice = "docker run --cap-add SYS_RESOURCE" if host.in_container else "give it to the node"
    masked = host.unmask("userns")
    return f"{advice}: it has no CAP_SYS_RESOURCE" + (f"; or {masked}" if masked else "")


_OF: dict[str, Callable[[Host], str]] = {
    "kill": lambda host: _cgroups_for(host, "kill"),
    "kill-file": lambda _: "Linux 5.14 or later with cgroup v2 (cgroup.kill)",
    "memory": lambda host: _cgroups_for(host, "memory"),
    "processes": lambda host: _cgroups_for(host, "processes"),
    "cpu": lambda host: _cgroups_for(host, "cpu"),
    "limits": _limits,
    "namespaces": _namespaces,
    "landlock": lambda host: _landlock_since(host, 1, "5.13"),
    "landlock-tcp": lambda host: _landlock_since(host, 4, "6.7"),
    "landlock-scopes": lambda host: _landlock_since(host, 6, "6.12"),
    "seccomp": _seccomp,
    "pidfd": _pidfd,
    "untrusted": lambda _: 'declare the task profile="untrusted", or its queue in untrusted_queues',
}
