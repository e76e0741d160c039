"""The canary: what a job sees of itself, to compare with what the job before it left."""

from __future__ import annotations

import builtins
import hashlib
import json
import locale
import os
import random
import resource
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from fumehood.common import task

# A digest of what is loaded, and of what a patch would replace.
_PATCHABLE = (builtins, json, os, random, signal)
_LIMITS = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))


def _digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _handlers() -> dict[str, str]:
    numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    return {str(int(n)): str(signal.getsignal(n)) for n in sorted(numbers, key=int)}


def _modules() -> str:
    members = [
        f"{module.__name__}.{name}={getattr(module, name)!r}"
        for module in _PATCHABLE
        for name in sorted(vars(module))
        if callable(getattr(module, name))
    ]
    return _digest(*sorted(sys.modules), *members)


def _own(name: str) -> str:
    return Path(f"/proc/self/{name}").read_text().strip()


def _status() -> dict[str, str]:
    wanted = ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Threads", "SigIgn")
    pairs = [line.split(":", 1) for line in _own("status").splitlines()]
    return {name: value.strip() for name, value in pairs if name in wanted}


def _temporary(mark: str) -> list[str]:
    """Private folders must be empty; of shared ones only what hostile jobs leave counts."""
    return sorted(
        str(path)
        for place in ("/tmp", "/var/tmp", "/dev/shm")
        if Path(place).is_dir()
        for path in Path(place).glob(f"{mark}*")
    )


@task(name="hostile.canary")
def canary(mark: str) -> dict[str, Any]:
    mask = os.umask(0o22)
    os.umask(mask)
    return {
        "environment": _digest(*sorted(f"{name}={value}" for name, value in os.environ.items())),
        "spoilt": [name for name in os.environ if name.startswith("HOSTILE_SPOILT")],
        "cwd": os.getcwd(),  # noqa: PTH109
        "umask": mask,
        "handlers": _digest(_handlers()),
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "limits": {name: list(resource.getrlimit(getattr(resource, name))) for name in _LIMITS},
        "modules": _modules(),
        "path": sys.path,
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion": sys.getrecursionlimit(),
        "nice": os.nice(0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "scheduler": os.sched_getscheduler(0),
        "oom": _own("oom_score_adj"),
        "name": _own("comm"),
        "status": _status(),
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:6],  # noqa: PTH208
        "user": [os.getresuid(), os.getresgid(), os.getgroups()],
        "temporary": _temporary(mark),
        "cgroup": _own("cgroup"),
        "chance": [repr(random.random()), str(uuid.uuid4()), os.urandom(8).hex()],
    }


@task(name="hostile.ping")
def ping(number: int) -> int:
    return number + 1
