"""What untrusted jobs are promised, and whether this host holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fumehood.common.settings import Settings
from fumehood.common.task import Profile
from fumehood.worker.sandbox.manager import SandboxManager
from fumehood.worker.sandbox.options import manager_config


def make_manager(
    settings: Settings, modules: Sequence[str], slots: int
) -> Callable[[Profile], SandboxManager]:
    """A maker of managers for one node, one for each profile."""

    def make(profile: Profile) -> SandboxManager:
        return SandboxManager(manager_config(settings, modules, slots, profile))

    return make
