"""How a sandbox manager is to make sandboxes, and the zygotes that it makes them from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from fumehood.common.task import Profile
from fumehood.worker.sandbox import environment
from fumehood.worker.sandbox.confinement import Config
from fumehood.worker.sandbox.renewal import Lifetime
from fumehood.worker.sandbox.seats import Seats
from fumehood.worker.sandbox.zygote_process import ZygoteConfig

#: Bytes; what an untrusted job may write to its temporary folders unless somebody says otherwise.
DEFAULT_TMP = 64 << 20


@dataclass(frozen=True, slots=True)
class ManagerConfig:
    """How a manager makes sandboxes."""

    modules: Sequence[str]
    slots: int = 1
    ctx: Literal["fork", "forkserver", "spawn"] = "fork"
    start_timeout: float = 30.0  # seconds
    env: Sequence[str] = ()  # more names of environment variables that tasks may see
    disabled: frozenset[str] = frozenset()  # mechanisms not to use, such as "cgroup"
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    profile: Profile = "trusted"
    tmp: int = DEFAULT_TMP  # bytes of the temporary folders of untrusted jobs that say nothing
    show: Sequence[str] = ()  # further files and folders that untrusted jobs may read
    lifetime: Lifetime = field(default_factory=Lifetime)
    watch_code: bool = True
    guarantees: tuple[str, ...] = ()  # what is said in outcomes to have been enforced

    def for_zygote(self, seats: Seats, lifeline: int) -> ZygoteConfig:
        """What zygotes are started with, while the manager has these seats."""
        config = ZygoteConfig(
            modules=self.modules,
            env=environment.allowed(self.environ, self.env, self.profile),
            lifeline=lifeline,
            kill_all=seats.kill_fd,
            has_cgroups=seats.tree is not None,
            start_timeout=self.start_timeout,
            disabled=self.disabled,
            watch=self.watch_code,
        )
        if self.profile == "trusted":
            return config
        ids = seats.ids
        confinement: Config = {
            "path": list(config.path),
            "cwd": os.getcwd(),
            "show": list(self.show),
            "hide": [],
            "uids": 0 if ids is None else ids.base,
            "slots": 0 if ids is None else ids.slots,
            "disabled": sorted(self.disabled),
        }
        return replace(config, confinement=confinement)
