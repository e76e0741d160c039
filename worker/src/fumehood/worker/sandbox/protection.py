"""What jobs are promised, and what becomes of a promise that this host does not hold.

An untrusted manager is not started where a guarantee that ``untrusted_requires`` names is not
enforced. The examination takes a second, and what it finds is a fact of the host: each process
makes it once. Plain sandboxes for trusted jobs do without; a node makes it beside its own start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from fumehood.common.errors import SandboxUnavailable
from fumehood.common.settings import Settings
from fumehood.common.task import Profile
from fumehood.worker.sandbox.doctor import examine
from fumehood.worker.sandbox.guarantees import PROMISED, Examination, Finding
from fumehood.worker.sandbox.manager import SandboxManager
from fumehood.worker.sandbox.manager_config import ManagerConfig
from fumehood.worker.sandbox.options import manager_config

log = logging.getLogger("fumehood.sandbox")

_Key = tuple[Profile, frozenset[str], int]
_known: dict[_Key, Examination] = {}


async def examined(settings: Settings, profile: Profile) -> Examination:
    """What this host holds; examined once for each profile, set of masks and user.

    One that found nothing in force is not kept: it may have been the moment's.
    """
    key = (profile, frozenset(settings.sandbox_disable), os.geteuid())
    if key not in _known:
        found = await examine(settings, profile)
        if not found.enforced:
            return found
        _known[key] = found
    return _known[key]


def make_manager(
    settings: Settings, modules: Sequence[str], slots: int, *, examine_all: bool = False
) -> Callable[[Profile], SandboxManager]:
    """A maker of managers for one node, one for each profile.

    With ``examine_all`` outcomes of trusted jobs tell what was in force, too.
    """

    def make(profile: Profile) -> SandboxManager:
        config = manager_config(settings, modules, slots, profile)
        if profile == "untrusted":
            return GuardedManager(config, settings)
        return ExaminedManager(config, settings) if examine_all else SandboxManager(config)

    return make


class ExaminedManager(SandboxManager):
    """A manager that examines the host while it starts, and has outcomes tell what holds."""

    def __init__(self, config: ManagerConfig, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings

    async def start(self) -> None:
        """As of any manager. What the profile promises and the host lacks is logged."""
        examining = asyncio.ensure_future(examined(self._settings, self._config.profile))
        try:
            await super().start()
            examination = await examining
        except BaseException:
            examining.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await examining
            await self.stop()
            raise
        self._config = replace(self._config, guarantees=examination.enforced)
        self._around.guarantees = examination.enforced
        _log_what_is_lacking(examination)


class GuardedManager(SandboxManager):
    """A manager that does not start where the host lacks what untrusted jobs require."""

    def __init__(self, config: ManagerConfig, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings

    async def start(self) -> None:
        """Raises ``SandboxUnavailable`` that names what is lacking and what to do about it."""
        examination = await examined(self._settings, self._config.profile)
        lacking = examination.lacks(self._settings.untrusted_requires)
        if lacking:
            raise SandboxUnavailable(refusal(lacking))
        self._config = replace(self._config, guarantees=examination.enforced)
        await super().start()
        _log_what_is_lacking(examination)


def refusal(lacking: Sequence[Finding]) -> str:
    """Why untrusted jobs are not run, in one line."""
    what = ", ".join(f"{each.guarantee} ({each.level})" for each in lacking)
    remedies = "; ".join(dict.fromkeys(each.remedy for each in lacking if each.remedy))
    advice = f": {remedies}" if remedies else f": {lacking[0].evidence}"
    return f"this host does not hold what untrusted_requires names: {what}{advice}"


def _log_what_is_lacking(examination: Examination) -> None:
    lacking = examination.lacks(PROMISED[examination.profile])
    if lacking:
        log.warning(
            "this host does not hold all that %s jobs are promised: see fumehood doctor",
            examination.profile,
            extra={"cause": "; ".join(map(str, lacking))},
        )
