"""A node: one broker connection, one runner, and the jobs in between.

1. Start: get sandboxes ready, then connect, then consume. No job is taken that could not be run.
2. Serve: each delivery becomes a task of its own; prefetch is the number of slots.
3. Drain: take no more, give back what has not begun, let the rest finish until a deadline.
4. Stop: end what is left, give it back, leave no process behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence

from fumehood.broker.interface import Broker, Delivery, Subscription
from fumehood.common.envelope import read_control
from fumehood.common.errors import MalformedMessage
from fumehood.common.message import Message
from fumehood.common.settings import Settings
from fumehood.worker.executor import Executor
from fumehood.worker.inline import LOST, InlineRunner
from fumehood.worker.runner import Runner
from fumehood.worker.sandbox.manager import SandboxManager
from fumehood.worker.sandbox.options import manager_config
from fumehood.worker.sandbox.verdict import KillReason

log = logging.getLogger("fumehood.worker")


class Node:
    """Everything that one worker process supervises. Belongs to one event loop."""

    def __init__(
        self, broker: Broker, modules: Sequence[str], queues: Sequence[str], slots: int, settings: Settings
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._broker = broker
        self._queues = list(dict.fromkeys(queues))
        self._slots = slots
        self._modules = modules
        self._settings = settings
        self.runner: Runner = self._make_runner()
        self._fallback = self._make_fallback()
        self._executor = Executor(broker, self.runner, settings, self.name, self._fallback)
        self._subscriptions: list[Subscription] = []
        self._jobs: set[asyncio.Task[None]] = set()
        self._stopped = False

    def _make_runner(self) -> Runner:
        if not self._settings.sandbox_enabled:
            log.warning(LOST)
            return InlineRunner(self._modules, self._slots)
        return SandboxManager(manager_config(self._settings, self._modules, self._slots))

    def _make_fallback(self) -> Runner | None:
        if not (self._settings.sandbox_fallback and self._settings.sandbox_enabled):
            return None
        return InlineRunner(self._modules, self._slots)

    @property
    def running(self) -> int:
        """Deliveries in this node's hands."""
        return len(self._jobs)

    async def start(self) -> None:
        """Raises ``SandboxUnavailable``, ``BrokerUnavailable``, ``ConfigurationError``."""
        try:
            await self.runner.start()
            if self._fallback is not None:
                await self._fallback.start()
            await self._broker.start()
            self._subscriptions.append(await self._broker.consume_control(self._on_control))
            for queue in self._queues:
                await self._broker.declare_queue(queue)
            for queue in self._queues:
                consumer = await self._broker.consume_jobs(queue, self._slots, self._on_delivery)
                self._subscriptions.append(consumer)
        except BaseException:
            await self.stop()
            raise
        log.info("the node is ready", extra={"node": self.name, "queues": self._queues})

    async def drain(self, deadline: float) -> None:
        """Take no more jobs; let running ones finish until ``deadline``, a monotonic instant."""
        self._executor.draining = True
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=max(0.0, deadline - time.monotonic()))

    async def stop(self) -> None:
        """Give back what still runs and end. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        await self.drain(time.monotonic())
        self.runner.kill_all(KillReason.SHUTDOWN)
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=self._settings.publish_timeout)
        await self.runner.stop()
        if self._fallback is not None:
            await self._fallback.stop()
        await self._broker.stop()

    # --- what the broker brings -------------------------------------------------------------

    def _on_delivery(self, delivery: Delivery) -> None:
        task = asyncio.get_running_loop().create_task(self._execute(delivery))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _execute(self, delivery: Delivery) -> None:
        try:
            await self._executor.execute(delivery)
        except Exception:
            # A fault of this node, not of the job: another node may do better.
            log.exception("a delivery could not be seen through")
            delivery.reject()

    def _on_control(self, message: Message) -> None:
        try:
            what, job_id = read_control(message)
        except MalformedMessage as exc:
            log.warning("a control message was ignored", extra={"cause": str(exc)})
            return
        if what == "cancel" and job_id:
            self._executor.cancel(job_id)
