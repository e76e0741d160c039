"""``Worker``: a node as an application starts it."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from typing import Any

from fumehood.broker.connect import connect
from fumehood.broker.interface import Broker
from fumehood.broker.options import BrokerOptions
from fumehood.common.errors import ConfigurationError
from fumehood.common.settings import Settings, load_settings
from fumehood.worker.node import Node

log = logging.getLogger("fumehood.worker")


class Worker:
    """Runs the jobs of ``queues`` with the tasks of ``modules``, ``concurrency`` at a time.

    ``url`` defaults to the setting ``broker_url``, ``concurrency`` to the setting of that name. A
    ``broker`` passed in is started and stopped by the worker. Good for one start and one stop.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        modules: Sequence[str],
        queues: Sequence[str] = ("default",),
        concurrency: int | None = None,
        settings: Settings | None = None,
        broker: Broker | None = None,
    ) -> None:
        if not modules or not queues:
            raise ConfigurationError("a worker needs at least one module with tasks and one queue")
        self.settings = load_settings() if settings is None else settings
        slots = self.settings.concurrency if concurrency is None else concurrency
        if slots < 1:
            raise ConfigurationError(f"concurrency must be 1 or more, not {slots}")
        broker = broker or connect(
            self.settings.broker_url if url is None else url,
            options=BrokerOptions(
                connect_timeout=self.settings.connect_timeout,
                publish_timeout=self.settings.publish_timeout,
            ),
        )
        self.node = Node(broker, modules, queues, slots, self.settings)
        self._stop_now = asyncio.Event()
        self._drain_now = asyncio.Event()

    async def start(self) -> None:
        """Get sandboxes ready, connect, consume.

        Raises ``SandboxUnavailable``, ``BrokerUnavailable``, ``ConfigurationError``.
        """
        await self.node.start()

    async def drain(self, deadline: float) -> None:
        """Take no more jobs; let those that run finish until ``deadline``, a monotonic instant."""
        await self.node.drain(deadline)
        self._stop_now.set()

    async def stop(self) -> None:
        """Give back what still runs, and end every process. Idempotent."""
        self._stop_now.set()
        await self.node.stop()

    async def run(self) -> None:
        """Start, serve until told to stop, stop.

        SIGTERM drains within ``drain_grace`` seconds; a second one, or SIGINT, stops at once, as
        either does before the node is ready. Signal handlers are set only in a process's main
        thread.
        """
        self._listen()
        stop = asyncio.ensure_future(self._stop_now.wait())
        drain = asyncio.ensure_future(self._drain_now.wait())
        try:
            if await self._started(stop, drain):
                await self._serve(stop, drain)
        finally:
            stop.cancel()
            drain.cancel()
            await self.stop()

    async def _started(self, *told: asyncio.Future[Any]) -> bool:
        """Start; False when told to stop before that was done."""
        starting: asyncio.Future[Any] = asyncio.ensure_future(self.start())
        try:
            await asyncio.wait((starting, *told), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not starting.done():
                log.info("told to stop before the node was ready")
                starting.cancel()
                await asyncio.wait((starting,))
        if starting.cancelled():
            return False
        starting.result()
        return True

    async def _serve(self, stop: asyncio.Future[Any], drain: asyncio.Future[Any]) -> None:
        await asyncio.wait((stop, drain), return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            return
        grace = self.settings.drain_grace
        log.info("draining", extra={"grace": grace, "jobs": self.node.running})
        draining = asyncio.ensure_future(self.drain(time.monotonic() + grace))
        await asyncio.wait((stop, draining), return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            draining.cancel()
            await asyncio.wait((draining,))
        elif not draining.cancelled():
            draining.result()

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGTERM, self._on_term)
            loop.add_signal_handler(signal.SIGINT, self._stop_now.set)
        except (ValueError, RuntimeError, NotImplementedError):
            log.info("not in the main thread: signals are the application's own")

    def _on_term(self) -> None:
        if self._drain_now.is_set():
            self._stop_now.set()
        self._drain_now.set()
