"""Keeping a zygote at hand: started, watched, replaced when it is lost or stuck, reaped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from fumehood.common.errors import SandboxUnavailable
from fumehood.worker.sandbox.poller import Poller
from fumehood.worker.sandbox.zygote_process import ZygoteConfig, ZygoteProcess

log = logging.getLogger("fumehood.sandbox")

_LOOK_EVERY = 0.5  # seconds
_LOOKS_MAX = 6  # looks in a row that found the same answer missing, until a zygote is given up
_END_MAX = 3.0  # seconds that a zygote gets to end everything below it


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what becomes of zygotes."""

    on_ready: Callable[[ZygoteProcess], None]
    on_lost: Callable[[], None]  # the current one
    on_failed: Callable[[str], None]  # one could not be started, and why


class ZygoteKeeper:
    """The current zygote, if there is one, and those that still have sandboxes. For one loop."""

    def __init__(self, config: ZygoteConfig, poller: Poller, listener: Listener) -> None:
        self.current: ZygoteProcess | None = None
        self._config = config
        self._poller = poller
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._zygotes: set[ZygoteProcess] = set()
        self._starting: asyncio.Task[None] | None = None
        self._reaping: set[asyncio.Future[None]] = set()
        self._look = self._loop.call_later(_LOOK_EVERY, self._look_after)
        self._stopped = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the zygotes alive."""
        return [zygote.pid for zygote in self._zygotes]

    async def start(self) -> None:
        """Have a first one. Raises ``SandboxUnavailable``."""
        self._adopt(await self._new())

    def begin(self) -> None:
        """Start one in the background, unless that goes on already."""
        if self._starting is None and not self._stopped:
            self._starting = self._loop.create_task(self._begin())

    def use_up(self) -> None:
        """Ask the current one for nothing any more; it ends when its sandboxes have."""
        self.current = None

    def change(self, config: ZygoteConfig) -> None:
        """Start zygotes in another way from now on."""
        self._config = config
        self.use_up()

    @property
    def is_starting(self) -> bool:
        """Whether another one is about to take over."""
        return self._starting is not None

    async def fresh(self) -> ZygoteProcess:
        """One that is not to be the current one: set ``adopted`` when it has its sandbox.

        Raises ``SandboxUnavailable``.
        """
        return await self._new()

    async def _begin(self) -> None:
        try:
            zygote = await self._new()
        except SandboxUnavailable as exc:
            self._starting = None
            if not self._stopped:
                self._listener.on_failed(str(exc))
        else:
            self._starting = None
            self._adopt(zygote)

    async def _new(self) -> ZygoteProcess:
        try:
            zygote = ZygoteProcess(self._config, self._poller, self._on_lost)
        except OSError as exc:
            raise SandboxUnavailable(f"a zygote cannot be started: {exc}") from exc
        self._zygotes.add(zygote)
        try:
            await zygote.ready(self._config.start_timeout)
        except BaseException:
            zygote.close(kill=True)
            self._discard(zygote)
            raise
        for matters, text in zygote.warnings:
            log.log(logging.WARNING if matters else logging.INFO, text)
        return zygote

    def _adopt(self, zygote: ZygoteProcess) -> None:
        zygote.adopted = True
        self.current = zygote
        self._listener.on_ready(zygote)

    # --- watching ---------------------------------------------------------------------------

    def _look_after(self) -> None:
        self._look = self._loop.call_later(_LOOK_EVERY, self._look_after)
        for zygote in list(self._zygotes):
            if zygote.greeted and zygote.looks_in_vain() >= _LOOKS_MAX:
                log.error("the zygote does not answer: it is replaced", extra={"pid": zygote.pid})
                zygote.lose("the zygote did not answer")
        self.let_go_of_idle()

    def let_go_of_idle(self) -> None:
        """End the zygotes that are used up and have no sandbox left."""
        for zygote in list(self._zygotes):
            if zygote.adopted and zygote is not self.current and not zygote.sandboxes:
                zygote.close()
                self._discard(zygote)

    def _on_lost(self, zygote: ZygoteProcess) -> None:
        self._discard(zygote)
        if zygote is self.current:
            log.error("the zygote is gone: a new one is started", extra={"pid": zygote.pid})
            self.current = None
            self._listener.on_lost()

    def disown(self) -> None:
        """In a fork of this process: close its copies of what zygotes watch."""
        for zygote in self._zygotes:
            zygote.disown()

    # --- ending -----------------------------------------------------------------------------

    def _discard(self, zygote: ZygoteProcess) -> None:
        if zygote in self._zygotes:
            self._zygotes.discard(zygote)
            reaping = self._loop.run_in_executor(None, zygote.reap, _END_MAX)
            self._reaping.add(reaping)
            reaping.add_done_callback(self._reaping.discard)

    async def stop(self) -> None:
        """End all of them with everything below them."""
        self._stopped = True
        self._look.cancel()
        if self._starting is not None:
            self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._starting
        self.current = None
        for zygote in list(self._zygotes):
            zygote.close()
            self._discard(zygote)
        if self._reaping:
            await asyncio.wait(self._reaping)
