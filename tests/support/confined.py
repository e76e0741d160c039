"""Acts in a forked child that has given something up: how each of them ends."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ending:
    """What an act came to: the signal that ended its process, an errno, or a value."""

    signal: int = 0
    errno: int = 0
    value: Any = None


def ending_of(act: Callable[[], object], *confine: Callable[[], object]) -> Ending:
    """Fork, confine the child, and act there; a failure to confine is the test's own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            os.write(write, pickle.dumps(_attempt(act, confine)))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Ending(signal=os.WTERMSIG(status))
    ending = pickle.loads(answer)  # noqa: S301 - from our own child
    if isinstance(ending, str):
        raise AssertionError(ending)
    assert isinstance(ending, Ending)
    return ending


def _attempt(act: Callable[[], object], confine: tuple[Callable[[], object], ...]) -> Ending | str:
    try:
        for step in confine:
            step()
    except BaseException:  # noqa: BLE001 - told to the parent
        return traceback.format_exc()
    try:
        return Ending(value=act())
    except OSError as exc:
        return Ending(errno=exc.errno or -1)
    except BaseException:  # noqa: BLE001 - told to the parent
        return traceback.format_exc()


def status_field(name: str) -> str:
    """A field of this process's /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name + ":"))


def is_unconfined() -> bool:
    """Whether this process may do what root may, so that a refusal is the tested mechanism's."""
    full = int(status_field("CapEff"), 16)
    admin_and_setpcap = 1 << 21 | 1 << 8
    return full & admin_and_setpcap == admin_and_setpcap and status_field("Seccomp") == "0"
